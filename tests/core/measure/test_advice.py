"""From the numbers to a setting."""

from __future__ import annotations

from typing import Any

import pytest

from specc.core.measure.advice import advice


def cell(tokens: int, speedup: float, reach: float = 0.02, *, batch: int = 1, heat: float = 0.0) -> dict[str, Any]:
    return {"temperature": heat, "batch_size": batch, "speculative_tokens": tokens, "speedup": speedup,
            "interval": [speedup - reach, speedup + reach], "tokens_per_second": 100 * speedup}  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([cell(1, 1.2), cell(3, 1.5), cell(5, 1.3)], (3, 1.5)),
        ([cell(5, 1.51), cell(3, 1.50), cell(1, 1.2)], (3, 1.50)),  # as good, and smaller
        ([cell(1, 0.9), cell(3, 0.7)], (0, 1.0)),
        ([cell(1, 1.01), cell(3, 0.7)], (0, 1.0)),  # a gain that noise would give too
        ([cell(1, 1.01, 0.005), cell(3, 0.7)], (1, 1.01)),
        ([cell(1, 1.0, 0.0)], (0, 1.0)),
    ],
)
def test_the_fastest_is_chosen_and_of_equals_the_smallest(cells: list[Any], expected: tuple[int, float]) -> None:
    (found,) = advice(cells)
    assert (found["speculative_tokens"], found["speedup"]) == expected
    assert [point["speculative_tokens"] for point in found["curve"]] == sorted(
        one["speculative_tokens"] for one in cells
    )


def test_each_temperature_and_batch_size_has_a_setting_of_its_own() -> None:
    found = advice([cell(3, 1.6), cell(3, 0.8, batch=16), cell(3, 1.3, heat=0.7)])
    assert [(one["temperature"], one["batch_size"], one["speculative_tokens"]) for one in found] == [
        (0.0, 1, 3), (0.0, 16, 0), (0.7, 1, 3),
    ]  # fmt: skip
    assert found[0]["curve"] == [{"speculative_tokens": 3, "speedup": 1.6, "tokens_per_second": 160.0}]
    assert advice([]) == []
