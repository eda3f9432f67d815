"""What an evaluation says of greedy output, by the dtypes that it was compared in."""

from __future__ import annotations

from typing import Any

import pytest

from specc.core.measure.acceptance import exact, greedy

NONE = {"identical": 0, "prompts": 0, "first_differences": []}
SAME = {"identical": 4, "prompts": 4, "first_differences": []}
SOME = {"identical": 3, "prompts": 4, "first_differences": [{}]}


@pytest.mark.parametrize(
    ("evaluation", "shown", "compared"),
    [
        ({"lossless": {"bfloat16": SOME, "fp32": SAME}}, {"bfloat16": SOME, "fp32": SAME}, SAME),
        ({"lossless": {"float32": SAME, "fp32": SAME}}, {"float32": SAME}, SAME),
        ({"lossless": {"bfloat16": SOME, "fp32": NONE}}, {"bfloat16": SOME}, None),
        ({"lossless": {"float32": SAME, "fp32": NONE}}, {"float32": SAME}, None),
        ({}, {}, None),
    ],
)
def test_greedy_output_is_told_of_dtypes_that_a_prompt_was_answered_in(
    evaluation: dict[str, Any], shown: dict[str, Any], compared: dict[str, Any] | None
) -> None:
    assert greedy(evaluation) == shown
    assert exact(evaluation) == compared
