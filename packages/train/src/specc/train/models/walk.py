"""Greedy speculation replayed over known rows: how long drafts are accepted, without serving anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WalkCounts:
    """What vLLM counts: drafts that were verified, their accepted tokens, and those by place in the draft."""

    drafts: int
    accepted: int
    accepted_per_position: tuple[int, ...]

    @classmethod
    def none(cls, steps: int) -> WalkCounts:
        """Nothing drafted yet, with drafts of `steps` tokens."""
        return cls(0, 0, (0,) * steps)

    def __add__(self, other: WalkCounts) -> WalkCounts:
        """Add counts up."""
        pairs = zip(self.accepted_per_position, other.accepted_per_position, strict=True)
        return WalkCounts(
            self.drafts + other.drafts, self.accepted + other.accepted, tuple(mine + theirs for mine, theirs in pairs)
        )

    @property
    def mean_acceptance_length(self) -> float:
        """Accepted draft tokens per draft, plus the token that the verifier adds; 1 without a draft."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0


def accepted_lengths(guesses: Tensor, ids: Tensor) -> Tensor:
    """Return for each place of a row how many proposals in a row it goes on with, int64 `[tokens]`.

    `guesses` are a model's, `[tokens, steps]`, and `ids` the row's own tokens `[tokens]`. Entry i is the draft that
    vLLM makes when token i + 1 has just been sampled: the leading run of proposals that equal tokens i + 2, i + 3, ...,
    cut where the row ends.
    """
    count, steps = guesses.shape
    ahead = torch.arange(count)[:, None] + 2 + torch.arange(steps)  # [tokens, steps]
    right = (guesses == ids[ahead.clamp(max=count - 1)]) & (ahead < count)
    return right.cumprod(1).sum(1)


def greedy_walk(accepted: Sequence[int], first: int, last: int, steps: int) -> WalkCounts:
    """Replay a response of tokens `first` to `last` (inclusive, places in the row), given `accepted_lengths`.

    The verifier makes token `first` with the prompt; then each draft starts from the newest token, and what is
    accepted plus the verifier's own token come out of it. vLLM counts a draft when it is verified, with all
    that was accepted, and cuts the answer at its end (eos or max_tokens) only afterwards: the last draft may
    therefore count tokens past `last`. Give `accepted` from a row that goes on past `last` by `steps` tokens to
    count these too; a row that ends there counts the last draft short.

        token       5      6      7      8      9            first = 5, last = 9, steps = 3
        accepted[4] = 1: x_6 is right; x_7 comes from the verifier
        accepted[6] = 2: x_8, x_9 are right; the response is over      -> 2 drafts, 3 accepted, (2, 1, 0)
    """
    runs: list[int] = []
    newest = max(first, 1)  # a row's first token has no state before it to draft from
    while newest < last:
        run = min(int(accepted[newest - 1]), steps)
        runs.append(run)
        newest += run + 1
    per_position = tuple(sum(run > place for run in runs) for place in range(steps))
    return WalkCounts(len(runs), sum(runs), per_position)
