"""What an epoch is worth: losses and right guesses over the validation rows, and greedy speculation replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from specc.train.data import Corpus
from specc.train.determinism import stream
from specc.train.models import DraftModel, Frozen, Reading, WalkCounts, accepted_lengths, greedy_walk
from specc.train.models.rows import depths

ROWS: Final = 256
"""States whose logits over the whole vocabulary exist at once."""


class Validation:
    """The validation rows, with the verifier's own choices at their tokens (computed once, kept as ids)."""

    def __init__(
        self,
        corpus: Corpus,
        batches: Sequence[Sequence[int]],
        frozen: Frozen,
        losses: Mapping[str, float],
        steps: int,
    ) -> None:
        """Take the batches as places in the corpus' validation documents, and the tokens of a draft."""
        self.corpus, self.batches, self.frozen, self.losses, self.steps = corpus, batches, frozen, losses, steps
        self._choices: dict[int, Tensor] = {}

    def __call__(self, model: DraftModel, say: Callable[[int], None]) -> dict[str, Any]:
        """Return an epoch's validation metrics as `metrics.json` holds them; without rows, counts of nothing.

        `say` is told after every row how many are done.

        A guess is right if it is the token that the verifier's head ranks first; a choice outside the draft
        vocabulary is therefore always missed. `right_so_far` counts drafts right up to and with that place.
        What else an algorithm measures of itself stands beside these.
        """
        counts = torch.zeros(3, self.steps, dtype=torch.int64)  # counted, right, right so far
        sums, totals = (torch.zeros(len(model.coefficients), dtype=torch.float64) for _ in range(2))
        covered, done, walk = 0, 0, WalkCounts.none(self.steps)
        measures: dict[str, Tensor] = {}
        known = torch.zeros(len(self.frozen.embed_tokens), dtype=torch.bool)
        known[model.to_verifier(torch.arange(len(model.head.weight)))] = True
        with torch.inference_mode():
            for number, places in enumerate(self.batches):
                documents = [self.corpus.validation[place] for place in places]
                batch = self.corpus.batch(documents, model, self.frozen.normed, stream(0, "validation", number))
                *found, own = model.measured(batch.content, self.losses)
                sums += found[0].double()
                totals += found[1].double()
                measures = {name: measures[name] + one if name in measures else one for name, one in own.items()}
                for place, document in zip(places, documents, strict=True):
                    reading, mask = self.corpus.read(document), self.corpus.mask(document)
                    guesses, choices = model.guesses(reading, self.steps), self._choices_of(place, reading)
                    counted = starts(mask, self.steps)  # [tokens, steps]
                    right = (guesses == ahead(choices, self.steps)) & counted
                    counts += torch.stack([one.sum(0) for one in (counted, right, right.cumprod(1))])
                    covered += int((known[ahead(choices, self.steps)[:, 0]] & counted[:, 0]).sum())
                    accepted = accepted_lengths(guesses, reading.ids).tolist()
                    for first, last in responses(mask):
                        walk += greedy_walk(accepted, first, last, self.steps)
                    done += 1
                    say(done)
        loss = float((sums * model.scales(totals)).sum()) if self.batches else None
        names = ("counted", "right", "right_so_far")
        return {
            "validation_loss": loss,
            "positions": [dict(zip(names, column, strict=True)) for column in counts.t().tolist()],
            "coverage": [covered, int(counts[0, 0])],
            "simulated": {
                "drafts": walk.drafts,
                "accepted": walk.accepted,
                "accepted_per_position": list(walk.accepted_per_position),
                "mean_acceptance_length": walk.mean_acceptance_length,
            },
            **model.summary(measures),
        }

    def _choices_of(self, place: int, document: Reading) -> Tensor:
        """Return the verifier's greedy choice of each token but the first (-1), int64 `[tokens]`.

        A soft cap or a scale does not change it.
        """
        if place not in self._choices:
            weight = self.frozen.full_head
            parts = self.frozen.normed(document.last[:-1]).split(ROWS)
            self._choices[place] = torch.cat([torch.tensor([-1]), *((part @ weight.t()).argmax(-1) for part in parts)])
        return self._choices[place]


def ahead(tokens: Tensor, steps: int) -> Tensor:
    """Return token i + 2 + k for a draft from every place i, int64 `[tokens, steps]`; the last one beyond the end."""
    count = len(tokens)
    places = torch.arange(count)[:, None] + 2 + torch.arange(steps)
    return tokens[places.clamp(max=count - 1)]


def starts(mask: Tensor, steps: int) -> Tensor:
    """Return whether a draft from place i may propose token i + 2 + k, bool `[tokens, steps]`.

    `mask` bool `[tokens]`: what the assistant wrote. All of a draft is of one response, as in `depths`.
    """
    count, deep = len(mask), depths(mask)
    places = torch.arange(count)[:, None] + 2 + torch.arange(steps)
    return (deep[places.clamp(max=count - 1)] >= torch.arange(steps)) & (places < count)


def responses(mask: Tensor) -> list[tuple[int, int]]:
    """Return `(first, last)`, inclusive, of every run of true values of `mask` `[tokens]`."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1))
    edges = padded.diff()
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return [(start, end - 1) for start, end in zip(starts, ends, strict=True)]
