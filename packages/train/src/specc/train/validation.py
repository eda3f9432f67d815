"""What an epoch is worth: losses and right guesses over the validation rows, and greedy speculation replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from specc.train.data import Corpus, Document
from specc.train.models import Eagle3, WalkCounts, accepted_lengths, greedy_walk
from specc.train.verifier import Frozen

ROWS: Final = 256
"""States whose logits over the whole vocabulary exist at once."""


class Validation:
    """The validation rows, with the verifier's own choices at their targets (computed once, kept as ids)."""

    def __init__(
        self, corpus: Corpus, batches: Sequence[Sequence[int]], frozen: Frozen, losses: Mapping[str, float]
    ) -> None:
        self.corpus, self.batches, self.frozen, self.losses = corpus, batches, frozen, losses
        self._choices: dict[int, Tensor] = {}

    def __call__(self, model: Eagle3) -> dict[str, Any]:
        """Return an epoch's validation metrics as `metrics.json` holds them; without rows, counts of nothing.

        A guess is right if it is the token that the verifier's head ranks first; a choice outside the draft
        vocabulary is therefore always missed. `right_so_far` counts drafts right up to and with that place.
        """
        steps = model.steps
        counted, right, so_far = [0] * steps, [0] * steps, [0] * steps
        sums, covered, walk = [0.0] * steps, 0, WalkCounts.none(steps)
        known = torch.zeros(len(self.frozen.embed_tokens), dtype=torch.bool)
        known[model.to_verifier(torch.arange(len(model.head.weight)))] = True
        for number, places in enumerate(self.batches):
            documents = [self.corpus.validation[place] for place in places]
            batch = self.corpus.batch(documents, steps, self.frozen)
            with torch.inference_mode():
                losses, picks = model.losses(batch.rows, batch.targets, self.losses, picks=True)
            choices = self._choices_of(number, batch.targets.normed)
            hits = (model.to_verifier(picks) == choices) & batch.targets.counted  # [steps, targets]
            alive = torch.ones_like(hits[0])
            for step in range(steps):
                # The target before, one step earlier, is of the same draft.
                alive = hits[step] & (alive if step == 0 else alive.roll(1))
                mask = batch.targets.counted[step]
                counted[step] += int(mask.sum())
                right[step] += int(hits[step].sum())
                so_far[step] += int(alive.sum())
                sums[step] += float(losses[step][mask].double().sum())
            covered += int((known[choices] & batch.targets.counted[0]).sum())
            for document in documents:
                walk += self._walk(model, document)
        means = [total / count for total, count in zip(sums, counted, strict=True) if count]
        weighted = [model.decay**step * mean for step, mean in enumerate(means)]
        return {
            "validation_loss": sum(weighted) if weighted else None,
            "positions": [
                {"counted": a, "right": b, "right_so_far": c} for a, b, c in zip(counted, right, so_far, strict=True)
            ],
            "coverage": [covered, counted[0]],
            "simulated": {
                "drafts": walk.drafts,
                "accepted": walk.accepted,
                "accepted_per_position": list(walk.accepted_per_position),
                "mean_acceptance_length": walk.mean_acceptance_length,
            },
        }

    def _walk(self, model: Eagle3, document: Document) -> WalkCounts:
        ids, mask, hidden = self.corpus.read(document)
        accepted = accepted_lengths(model, ids, hidden[:, :-1], model.steps).tolist()
        counts = WalkCounts.none(model.steps)
        for first, last in responses(mask):
            counts += greedy_walk(accepted, first, last, model.steps)
        return counts

    def _choices_of(self, number: int, normed: Tensor) -> Tensor:
        """Return the verifier's greedy tokens, int64 `[targets]`; a soft cap or a scale does not change them."""
        if number not in self._choices:
            weight = self.frozen.full_head
            self._choices[number] = torch.cat([(part @ weight.t()).argmax(-1) for part in normed.split(ROWS)])
        return self._choices[number]


def responses(mask: Tensor) -> list[tuple[int, int]]:
    """Return `(first, last)`, inclusive, of every run of true values of `mask` `[tokens]`."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1))
    edges = padded.diff()
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return [(start, end - 1) for start, end in zip(starts, ends, strict=True)]
