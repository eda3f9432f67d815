"""First differences and their size in the dtype's own steps; doubts about what was counted."""

from __future__ import annotations

from typing import Any

import pytest

from specc.evaluate import Difference, first_difference, ulp
from specc.evaluate.evaluation import doubts
from specc.evaluate.lossless import differences, gap_ulp, report


def test_equal_answers_do_not_differ() -> None:
    assert first_difference(0, [1, 2, 3], [1, 2, 3]) is None


def test_the_first_difference_is_where_two_answers_part() -> None:
    assert first_difference(4, [1, 2, 3], [1, 5, 3]) == Difference(prompt=4, position=1, tokens=(2, 5))
    assert first_difference(4, [1, 2], [1, 2, 9]) == Difference(prompt=4, position=2, tokens=(None, 9))


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1.0, "bfloat16", 2.0**-7),
        (17.5, "bfloat16", 0.125),  # 16 to 32 in steps of 1/8
        (-17.5, "bfloat16", 0.125),
        (17.5, "float16", 2.0**-6),
        (17.5, "float32", 2.0**-19),
        (0.0, "float32", 2.0**-149),
    ],
)
def test_ulp_is_the_step_between_numbers(value: float, dtype: str, expected: float) -> None:
    assert ulp(value, dtype) == expected


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ulp_agrees_with_torch(dtype: str) -> None:
    import torch

    for value in (0.75, 1.0, 3.3, 100.0, 2047.0):
        here = torch.tensor(value, dtype=getattr(torch, dtype))
        after = torch.nextafter(here, torch.full_like(here, float("inf")))
        assert float(after) - float(here) == ulp(float(here), dtype)


def test_a_near_tie_is_few_steps_wide() -> None:
    assert gap_ulp((17.5, 17.25), "bfloat16") == 2.0
    assert gap_ulp((17.25, 17.5), "bfloat16") == 2.0


def test_the_report_counts_and_lists() -> None:
    plain, speculative = [[1, 2], [3, 4], [5]], [[1, 2], [3, 9], [5, 6]]
    found = differences(plain, speculative)
    said = report(3, found, "bfloat16", lambda one: (17.5, 17.25) if one.prompt == 1 else None)
    assert said == {
        "prompts": 3,
        "identical": 1,
        "first_differences": [
            {"prompt": 1, "position": 1, "tokens": [4, 9], "gap_ulp": 2.0},
            {"prompt": 2, "position": 1, "tokens": [None, 6], "gap_ulp": None},
        ],
    }


def result(served: float, simulated: float, untrained: float = 1.0, drafts: int = 2000) -> dict[str, Any]:
    lengths = {"served": served, "simulated": simulated, "untrained": untrained}
    counts = {name: {"drafts": drafts, "mean_acceptance_length": value} for name, value in lengths.items()}
    return {"runtime": "vllm", **counts}


def test_counts_that_agree_raise_no_doubt() -> None:
    assert doubts(result(1.80, 1.83), {"algorithm": "eagle3", "hidden_state_layers": [2, 15, 27]}) == []


def test_served_and_replayed_lengths_that_disagree_are_said_to() -> None:
    (doubt,) = doubts(result(1.30, 1.83), {"algorithm": "eagle3", "hidden_state_layers": [2, 15, 27]})
    assert "1.300" in doubt
    assert "2, 15, 27" in doubt
    assert doubts(result(1.30, 1.83, drafts=60), {"algorithm": "eagle3", "hidden_state_layers": [2, 15, 27]}) == []


def test_a_draft_that_learnt_nothing_is_said_to() -> None:
    (doubt,) = doubts(result(1.0, 1.0, untrained=1.0), {"algorithm": "eagle3", "hidden_state_layers": [2, 15, 27]})
    assert "no better than the untrained one's" in doubt
