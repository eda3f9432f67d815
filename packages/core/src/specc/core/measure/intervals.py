"""How sure a measured number is: 95 % intervals of a mean acceptance length over prompts, and of a speed-up over pairs.

Prompts differ by far more than two runs over the same prompts do, so the interval of an acceptance length says what
other prompts of the kind would give. A speed-up's says what another run over the same prompts would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Final

RESAMPLES: Final = 2000
"""Resamples of a bootstrap: its ends then move by some hundredths of the interval's width with another seed."""
SEED: Final = 20_260_409
TAIL: Final = 0.025
"""Share of the resamples on each side of a 95 % interval."""
STUDENT: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom; with more it is taken for the last."""

Interval = tuple[float, float]


def bootstrap(drafts: Sequence[int], accepted: Sequence[int]) -> Interval:
    """Return the 95 % interval of a mean acceptance length, accepted tokens per draft + 1, over prompts.

    `drafts` and `accepted` are counts for each prompt. A resample draws as many prompts as there are, with
    replacement, and takes the ratio of its sums; the interval is between percentiles of `RESAMPLES` such ratios (Efron
    and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). The draws are those of a stream with a fixed
    seed: equal counts have equal intervals. A resample without a draft counts as 1, which is what its answers had.
    """
    random, count = Random(SEED), len(drafts)  # noqa: S311 - no secret is drawn
    found: list[float] = []
    for _ in range(RESAMPLES):
        chosen = [int(random.random() * count) for _ in range(count)]
        made = sum(map(drafts.__getitem__, chosen))
        found.append(1 + sum(map(accepted.__getitem__, chosen)) / made if made else 1.0)
    found.sort()
    low = math.floor(TAIL * RESAMPLES)
    return found[low], found[RESAMPLES - 1 - low]


def paired(ratios: Sequence[float]) -> tuple[float, Interval]:
    """Return the geometric mean of the speed-ups of pairs of runs, and its 95 % interval by Student's t of their logs.

    Two runs of a pair follow each other, so that what slows the machine for a while slows both, and falls out of their
    ratio. Two pairs at least; with a few the interval is wide, as it should be.
    """
    logs = [math.log(ratio) for ratio in ratios]
    count, mean = len(logs), sum(logs) / len(logs)
    variance = sum((one - mean) ** 2 for one in logs) / (count - 1)
    reach = STUDENT[min(count - 1, len(STUDENT)) - 1] * math.sqrt(variance / count)
    return math.exp(mean), (math.exp(mean - reach), math.exp(mean + reach))
