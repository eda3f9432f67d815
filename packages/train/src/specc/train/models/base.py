"""What every draft model offers to training, validation and the reference decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from specc.core.algorithms import TensorSpec
from specc.train.losses import Head
from specc.train.verifier import Frozen

PROPOSED: Final = 512
"""Rows whose logits exist at once when tokens are proposed."""
SPREAD: Final = 0.02
"""Standard deviation of random matrices, Llama's `initializer_range`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A document as the verifier read it.

    `ids` int64 `[tokens]`; `aux` `[tokens, layers, hidden]`, the states that the draft reads; `last`
    `[tokens, hidden]`, the last layer's output before the verifier's final norm. Nothing is read of the last token's
    states: it has none yet where a draft starts from it.
    """

    ids: Tensor
    aux: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a rank computes of an optimizer step: `content` as its model's `pack` returns it.

    A rank without a document of its own is `idle`: it computes as the others do, since all must meet in the same
    collectives, and counts nothing.
    """

    content: Any
    idle: bool = False


class DraftModel(nn.Module):
    """A draft model. Parameters carry the names of its checkpoint; what is frozen is no parameter.

    `embed_tokens` `[vocabulary, hidden]` and `head` are the verifier's own, in the dtype of the computation;
    `d2t` int64 `[draft vocabulary]` is the vocabulary map, None for the full vocabulary. A loss is a sum of terms,
    each a weighted mean over places of the whole optimizer step; `coefficients` are what the terms count for.
    """

    embed_tokens: Tensor
    head: Head
    d2t: Tensor | None
    coefficients: Sequence[float]

    def share(self, frozen: Frozen, d2t: Tensor | None) -> None:
        """Take the verifier's parts, as plain attributes, which neither DeepSpeed nor `.to` copies or casts."""
        self.embed_tokens, self.head, self.d2t = frozen.embed_tokens, frozen.head, d2t

    @classmethod
    def initial(cls, spec: TensorSpec, random: torch.Generator) -> Tensor:
        """Return a trained tensor's random first value, fp32."""
        if len(spec.shape) == 1:
            return torch.ones(spec.shape)
        return torch.randn(spec.shape, generator=random) * SPREAD

    @classmethod
    def native(cls, draft: Mapping[str, Any], verifier: Mapping[str, Any], folder: Path) -> dict[str, Tensor] | None:
        """Return the trained tensors as the verifier in `folder` has them, fp32; None for a draft that it has not."""
        return None

    @abstractmethod
    def choose(self, masks: Sequence[Tensor], random: torch.Generator) -> list[Any]:
        """Return for each document of an optimizer step what is learnt from it.

        `masks` are bool `[tokens]`: what the assistant wrote. Every rank chooses for all documents, from the same
        random stream.
        """

    @abstractmethod
    def pack(self, documents: Sequence[Reading], chosen: Sequence[Any], normed: Callable[[Tensor], Tensor]) -> Any:
        """Return the content of a batch of a rank's documents; `normed` applies the verifier's final norm to rows."""

    @abstractmethod
    def terms(self, content: Any, losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the terms' sums of weighted losses and sums of weights, both `[terms]`."""

    def measured(self, content: Any, losses: Mapping[str, float]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return what `terms` returns for a batch of validation rows, and sums of what `summary` tells besides."""
        return *self.terms(content, losses), {}

    def summary(self, measures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the algorithm's own metrics of an epoch, as JSON, given its `measured` sums over all batches."""
        return {}

    @abstractmethod
    def guesses(self, document: Reading, steps: int) -> Tensor:
        """Return greedy drafts from every place of a document, as the verifier's ids, int64 `[tokens, steps]`.

        Entry (i, k) is the proposal for token i + 2 + k of the draft that starts when token i + 1 has just been
        sampled, having states up to that of token i. It need be right only while the ones before it equal the
        document's own tokens; -1 where the document is over before it.
        """

    @abstractmethod
    def logits(self, document: Reading, drafted: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits `[draft vocabulary]` of the token after `drafted`, int64 `[k]`, the draft's own tokens.

        The draft starts from the document's last token. `steps` are the tokens of the whole draft, as many as in
        training by default: blocks see also what is not yet drafted. Computed from the beginning each time.
        """

    def draft(self, document: Reading, steps: int) -> Tensor:
        """Return the greedy draft from the document's last token, as the verifier's ids, int64 `[steps]`.

        It follows `logits`, unless a model's tokens are not drafted one after another.
        """
        drafted = document.ids[:0]
        for _ in range(steps):
            best = self.logits(document, drafted, steps).argmax(-1, keepdim=True)
            drafted = torch.cat((drafted, self.to_verifier(best)))
        return drafted

    def forward(self, batch: Batch, losses: Mapping[str, float]) -> Tensor:
        """Return the training loss; of several ranks each returns its part of it."""
        sums, totals = self.terms(batch.content, losses)
        if batch.idle:
            sums, totals = sums * 0, totals * 0
        totals = totals.detach().double()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(totals)
        return (sums * self.scales(totals).to(sums.dtype)).sum()

    def scales(self, totals: Tensor) -> Tensor:
        """Return what each term's sum is multiplied with, fp64 `[terms]`, given the sums of the terms' weights."""
        return torch.where(totals > 0, totals.new_tensor(self.coefficients) / totals, 0.0)

    def propose(self, states: Tensor) -> Tensor:
        """Return the verifier's ids, int64 `[rows]`, of the draft tokens proposed by final states `[rows, hidden]`."""
        chunks = [(chunk @ self.head.weight.t()).argmax(-1) for chunk in states.split(PROPOSED)]
        return self.to_verifier(torch.cat(chunks) if chunks else states.new_zeros(0, dtype=torch.int64))

    def to_verifier(self, tokens: Tensor) -> Tensor:
        """Return the verifier's ids of draft tokens: `i + d2t[i]`."""
        return tokens if self.d2t is None else tokens + self.d2t[tokens]
