"""Intervals: the bootstrap against a plain twin and on counts whose truth is known, and Student's t of pairs."""

from __future__ import annotations

import math
import statistics
from random import Random

import pytest

from specc.core.measure.intervals import RESAMPLES, SEED, STUDENT, bootstrap, paired


def test_the_bootstrap_is_that_of_a_plain_loop() -> None:
    random = Random(7)  # noqa: S311 - no secret is drawn
    drafts = [random.randint(0, 40) for _ in range(23)]
    accepted = [random.randint(0, 3 * count) for count in drafts]
    stream, ratios = Random(SEED), []  # noqa: S311 - as above
    for _ in range(RESAMPLES):
        made = found = 0
        for _ in range(23):
            one = int(stream.random() * 23)
            made, found = made + drafts[one], found + accepted[one]
        ratios.append(1 + found / made)
    ratios.sort()
    assert bootstrap(drafts, accepted) == (ratios[50], ratios[1949])


def test_equal_counts_have_equal_intervals_and_one_prompt_has_a_point() -> None:
    assert bootstrap([10, 20, 30], [5, 8, 40]) == bootstrap([10, 20, 30], [5, 8, 40])
    assert bootstrap([10], [15]) == (2.5, 2.5)
    assert bootstrap([0, 0], [0, 0]) == (1.0, 1.0)
    low, high = bootstrap([0, 10], [0, 20])
    assert (low, high) == (1.0, 3.0), "a resample without a draft counts as 1"


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """Forty prompts of two kinds: a draft's tokens are accepted with the kind's probability, one after another."""
    kinds, steps, covered, runs = ((0.35, 30), (0.75, 15)), 3, 0, 60
    each = [(sum(p**k for k in range(1, steps + 1)), count) for p, count in kinds]
    truth = 1 + sum(mean * count for mean, count in each) / sum(count for _, count in each)
    random = Random(3)  # noqa: S311 - as above
    for _ in range(runs):
        chosen = [random.choice(kinds) for _ in range(40)]
        accepted = [sum(_run(p, steps, random) for _ in range(count)) for p, count in chosen]
        low, high = bootstrap([count for _, count in chosen], accepted)
        covered += low <= truth <= high
    assert 0.85 <= covered / runs <= 0.99


def _run(chance: float, steps: int, random: Random) -> int:
    """Draw how many of a draft's tokens are accepted."""
    return next((place for place in range(steps) if random.random() >= chance), steps)


def test_a_pair_of_runs_is_a_ratio_and_several_have_the_interval_of_student() -> None:
    mean, (low, high) = paired([1.2, 1.3])
    assert mean == pytest.approx(math.sqrt(1.2 * 1.3))
    reach = 12.706 * statistics.stdev([math.log(1.2), math.log(1.3)]) / math.sqrt(2)
    assert (low, high) == pytest.approx((mean / math.exp(reach), mean * math.exp(reach)))
    assert paired([1.5] * 4) == (pytest.approx(1.5), (pytest.approx(1.5), pytest.approx(1.5)))
    assert len(STUDENT) == 30
    assert paired([1.0, 1.1] * 40)[1][0] < paired([1.0, 1.1] * 40)[0]
