"""The calibration of sets whose error is known beforehand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from specc.train.models.calibration import BINS, calibration, tally  # noqa: E402

pytestmark = pytest.mark.engine


def spread(*parts: tuple[int, float, float]) -> tuple[Tensor, Tensor]:
    """Confidences and rates of parts of (count, confidence, mean rate), the rates half above and half below it."""
    confidence = torch.cat([torch.full((count,), one) for count, one, _ in parts])
    rates = [rate + (torch.arange(count) % 2 - 0.5) * 0.1 for count, _, rate in parts]
    return confidence, torch.cat(rates)


@pytest.mark.parametrize(
    ("parts", "error", "confidence", "rate"),
    [
        ([(10, 0.1, 0.1), (20, 0.5, 0.5), (10, 0.95, 0.95)], 0.0, 0.5125, 0.5125),
        ([(30, 0.9, 0.6)], 0.3, 0.9, 0.6),
        ([(30, 0.9, 0.6), (10, 0.2, 0.2)], 0.225, 0.725, 0.5),
        ([(10, 0.9, 0.7), (10, 0.3, 0.5)], 0.2, 0.6, 0.6),  # means that agree hide nothing
    ],
)
def test_the_error_of_a_made_up_set_is_the_known_one(
    parts: list[tuple[int, float, float]], error: float, confidence: float, rate: float
) -> None:
    found = calibration(tally(*spread(*parts)))
    assert found["error"] == pytest.approx(error, abs=1e-6)
    assert found["mean_confidence"] == pytest.approx(confidence)
    assert found["mean_accept_rate"] == pytest.approx(rate)
    assert sum(count for count, _, _ in found["bins"]) == sum(count for count, _, _ in parts)


def test_each_confidence_is_in_its_bin() -> None:
    confidence = torch.tensor([0.0, 1 / 15 - 1e-4, 1 / 15 + 1e-4, 0.5, 1.0], dtype=torch.float64)
    counts = tally(confidence, torch.zeros(5))[:, 0]
    assert counts.nonzero()[:, 0].tolist() == [0, 1, 7, 14]
    assert counts[0] == 2
    assert len(counts) == BINS == 15


def test_tallies_of_parts_add_up_to_that_of_the_whole() -> None:
    random = torch.Generator().manual_seed(0)
    confidence, rate = torch.rand(2, 100, generator=random, dtype=torch.float64)
    parts = sum(tally(a, b) for a, b in zip(confidence.split(30), rate.split(30), strict=True))
    assert torch.allclose(parts, tally(confidence, rate), atol=1e-12)
    plain = 0.0
    for place in range(BINS):
        inside = (confidence >= place / BINS) & (confidence < (place + 1) / BINS)
        if inside.any():
            plain += float(inside.sum()) / 100 * float((confidence[inside].mean() - rate[inside].mean()).abs())
    assert calibration(parts)["error"] == pytest.approx(plain, abs=1e-12)


def test_nothing_has_no_error() -> None:
    found = calibration(torch.zeros(BINS, 3, dtype=torch.float64))
    assert (found["error"], found["mean_confidence"], found["mean_accept_rate"]) == (None, None, None)
    assert found["bins"] == [[0, None, None]] * BINS
