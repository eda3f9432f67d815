"""From the numbers to a setting: how many tokens to speculate, for each temperature and batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def advice(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each temperature and batch size the number of tokens to draft, 0 for none, and the curve behind it.

    `cells` have `temperature`, `batch_size`, `speculative_tokens`, `speedup` over the same engine without a speculator,
    its `interval`, and `tokens_per_second`. The fastest number is sought; a smaller one whose speed-up lies within the
    fastest's interval is as good, costs less, and is taken, 0 with its speed-up of 1 among them. So a gain that cannot
    be told from none is no reason to speculate.
    """
    groups: dict[tuple[float, int], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["temperature"], cell["batch_size"]), []).append(cell)
    found: list[dict[str, Any]] = []
    for (temperature, batch), some in sorted(groups.items()):
        curve = sorted(some, key=lambda cell: cell["speculative_tokens"])
        best = max(curve, key=lambda cell: cell["speedup"])
        least = min(best["interval"][0], best["speedup"])
        speedups = {0: 1.0, **{cell["speculative_tokens"]: cell["speedup"] for cell in curve}}
        chosen = 0 if best["speedup"] <= 1 else next(count for count, speedup in speedups.items() if speedup >= least)
        found.append(
            {
                "temperature": temperature,
                "batch_size": batch,
                "speculative_tokens": chosen,
                "speedup": speedups[chosen],
                "curve": [{name: cell[name] for name in ("speculative_tokens", "speedup", "tokens_per_second")}
                          for cell in curve],
            }
        )  # fmt: skip
    return found
