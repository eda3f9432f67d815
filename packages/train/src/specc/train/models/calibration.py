"""How far a draft's confidence is from what becomes of its tokens: expected calibration error (Naeini et al. 2015)."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

BINS: Final = 15
"""Bins of equal width over [0, 1]; the number that Guo et al. 2017, arXiv:1706.04599, report with."""


def tally(confidence: Tensor, rate: Tensor) -> Tensor:
    """Return fp64 `[BINS, 3]`: each bin's count, sum of confidences and sum of rates.

    `confidence` and `rate` `[n]` are the predicted and the actual chance of acceptance of the same draft tokens, both
    in [0, 1]. A bin takes its lower end, the last one both ends. Tallies of parts add up.
    """
    said, came = confidence.detach().double(), rate.detach().double()
    place = (said * BINS).long().clamp(max=BINS - 1)
    values = torch.stack((torch.ones_like(said), said, came), 1)
    return values.new_zeros(BINS, 3).index_add_(0, place, values)


def calibration(sums: Tensor) -> dict[str, Any]:
    """Return the expected calibration error, the means and the bins of a tally `[BINS, 3]`; None for means of nothing.

    The error is the sum over bins of |sum of confidences - sum of rates|, divided by the count of all: the distance of
    a bin's two means, weighted by the bin's share. `bins` are `[count, mean confidence, mean rate]`.
    """
    count, confidence, rate = sums.unbind(1)
    whole = float(count.sum())
    means = [
        [int(n), float(one) / int(n), float(two) / int(n)] if n else [0, None, None]
        for n, one, two in zip(count, confidence, rate, strict=True)
    ]
    return {
        "error": float((confidence - rate).abs().sum()) / whole if whole else None,
        "mean_confidence": float(confidence.sum()) / whole if whole else None,
        "mean_accept_rate": float(rate.sum()) / whole if whole else None,
        "bins": means,
    }
