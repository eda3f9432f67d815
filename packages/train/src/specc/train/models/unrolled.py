"""Drafts of one token after another: what EAGLE-3 and MTP share of training and drafting."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specc.train.losses import draft_losses
from specc.train.models.base import DraftModel, Reading
from specc.train.models.rows import Rows, Targets, depths, pack, whole


class Unrolled(DraftModel):
    """A draft model that reads its own state from the second step on; `steps` are unrolled in training."""

    steps: int

    @abstractmethod
    def read(self, document: Reading) -> Tensor:
        """Return what the first step reads of a document's states, `[tokens, width]`, in the computation's dtype."""

    @abstractmethod
    def unroll(self, rows: Rows) -> list[Tensor]:
        """Return the final, normed states `[queries of the step, hidden]` of every step."""

    def choose(self, masks: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
        """Return for each token of a document the longest step that may propose it: all of them are learnt from."""
        return [depths(mask) for mask in masks]

    def pack(
        self, documents: Sequence[Reading], chosen: Sequence[Tensor], normed: Callable[[Tensor], Tensor]
    ) -> tuple[Rows, Targets]:
        """Return rows and targets, documents one after another without their last two tokens' rows."""
        base, proposed, deep, last, borders = 0, list[Tensor](), list[Tensor](), list[Tensor](), list[tuple[int, int]]()
        for document, depth in zip(documents, chosen, strict=True):
            count = len(document) - 2
            targets = (depth >= 0).nonzero()[:, 0]  # x_{i+2} for row i of step 0
            last.append(document.last[targets - 1])
            proposed.append(targets - 2 + base)
            deep.append(depth[targets])
            borders.append((base, base + count))
            base += count
        states = torch.cat([self.read(document)[:-2] for document in documents])
        tokens = torch.cat([document.ids[1:-1] for document in documents])
        return pack(states, tokens, borders, torch.cat(proposed), torch.cat(deep), normed(torch.cat(last)), self.steps)

    def terms(self, content: tuple[Rows, Targets], losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return for each step the sum of its losses, and the number of targets that it counts."""
        rows, targets = content
        found = zip(self.unroll(rows), targets.places, strict=True)
        states = torch.stack([state.index_select(0, where) for state, where in found])  # [steps, targets, hidden]
        values = draft_losses(states, targets.normed, self.head, losses).losses
        return (values * targets.counted).sum(1), targets.counted.sum(1)

    def guesses(self, document: Reading, steps: int) -> Tensor:
        """Return every place's greedy drafts: at each step the document's own tokens are read."""
        count = len(document)
        found = torch.full((count, steps), -1)
        if count > 1:
            rows = whole(self.read(document), document.ids, steps)
            for step, states in enumerate(self.unroll(rows)):
                found[: len(states), step] = self.propose(states)
        return found

    def logits(self, document: Reading, drafted: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits after `drafted`: every row at the first step, the last one alone at later ones."""
        count = len(document) - 1
        rows = Rows(
            aux=self.read(document)[:-1],
            tokens=torch.cat((document.ids[1:], drafted)),
            positions=torch.arange(count),
            documents=[(0, count)],
            queries=[torch.arange(count), *(torch.tensor([count - 1]) for _ in drafted)],
        )
        return self.unroll(rows)[-1][-1] @ self.head.weight.t()
