"""What a benchmark measured, as tables: a line for each cell, its subsets of the prompts, and the setting to choose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specc.core.cli.options import columns, number

Cell = Mapping[str, Any]


def setting(cell: Cell) -> tuple[float, int, int]:
    """Return what tells a cell from the others: temperature, batch size, speculative tokens."""
    return cell["temperature"], cell["batch_size"], cell["speculative_tokens"]


def tables(found: Mapping[str, Any], speeds: Mapping[str, Any] | None) -> list[str]:
    """Return a benchmark as lines; `speeds` are of its run's record, None where there is none here."""
    cells: list[Cell] = sorted(found["cells"], key=setting)
    rates = {setting(cell): cell for cell in (speeds or {}).get("cells", ())}
    heads = ["temperature", "batch", "tokens"]
    rows = [
        [*heads, "mean length", "95 %", "accepted by position", "as alone", "tokens/s", "alone", "speed-up", "95 %"]
    ]
    for cell in cells:
        rate = rates.get(setting(cell), {})
        same: Mapping[str, int] = cell["lossless"] or {}
        rows.append(
            [
                *_named(cell),
                number(cell["mean_acceptance_length"]),
                span(cell["interval"]),
                shares(cell),
                f"{same['identical']}/{same['prompts']}" if same else "-",
                number(rate.get("tokens_per_second"), 0),
                number(rate.get("plain_tokens_per_second"), 0),
                number(rate.get("speedup"), 2),
                span(rate.get("interval"), 2),
            ]
        )
    lines = columns(rows)
    names = list(found["subsets"])
    if len(names) > 1:
        counted = [f"{name} ({found['subsets'][name]['prompts']})" for name in names]
        rows = [[*heads, *(f"{name}, 95 %" for name in counted)]]
        rows += [[*_named(cell), *(_length(cell["subsets"].get(name)) for name in names)] for cell in cells]
        lines += ["", "mean acceptance length by subset (prompts)", *columns(rows)]
    if chosen := (speeds or {}).get("advice"):
        lines += ["", *advised(chosen)]
    return lines


def advised(chosen: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the setting for each temperature and batch size in words, with the curve that it is read from."""
    lines: list[str] = []
    for one in chosen:
        count = one["speculative_tokens"]
        curve = ", ".join(f"{point['speculative_tokens']}: {point['speedup']:.2f}" for point in one["curve"])
        what = f"{count} speculative tokens" if count > 1 else "1 speculative token" if count else "do not speculate"
        lines.append(
            f"temperature {one['temperature']:g}, {one['batch_size']} at once: {what} (speed-up by tokens: {curve})"
        )
    return lines


def shares(counts: Cell) -> str:
    """Return the share of drafts that were accepted at each position."""
    drafts = counts["drafts"]
    return " ".join(f"{count / drafts:.2f}" for count in counts["accepted_per_position"] if drafts) or "-"


def span(interval: Sequence[float] | None, digits: int = 3) -> str:
    """Return an interval for a cell of a table."""
    return "-" if interval is None else f"{interval[0]:.{digits}f}-{interval[1]:.{digits}f}"


def _length(counts: Cell | None) -> str:
    return "-" if counts is None else f"{number(counts['mean_acceptance_length'])}, {span(counts['interval'])}"


def _named(cell: Cell) -> list[str]:
    return [f"{cell['temperature']:g}", str(cell["batch_size"]), str(cell["speculative_tokens"])]
