"""A benchmark's part of a report: speed-up and acceptance, each where it was measured, and the setting they advise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specc.core.cli.charts import Chart, Series
from specc.core.cli.options import number
from specc.core.cli.page import Figure, Fold, Section, Table, bars, lines
from specc.core.cli.sections import identical, length

Rows = Sequence[Mapping[str, Any]]


def benchmark(found: Mapping[str, Any], measured: Mapping[str, Any], name: str = "") -> Section:
    """Return what a benchmark counted (`benchmark.json`) and what it timed (`benchmark` of its run record).

    Without its times there are no speed-ups. `name` tells it from those of other builds on the page.
    """
    cells, timed, advice = (rows or [] for rows in (found.get("cells"), measured.get("cells"), measured.get("advice")))
    tag = f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}" if name else ""
    figures = [*_speeds(timed, tag), *_curves(advice, tag), *_lengths(cells, tag)]
    best = [
        [
            f"{one['temperature']:g}",
            str(one["batch_size"]),
            str(one["speculative_tokens"]),
            f"{one['speedup']:.2f}×{'' if one['speedup'] > 1 else ', no gain'}",
        ]
        for one in advice
    ]
    head = ["temperature", "batch size", "speculative tokens", "speed-up"]
    return Section(
        id=f"benchmark{tag}",
        title=f"Benchmark of {name}" if name else "Benchmark",
        text=f"{found.get('prompts', 0)} prompts in {found.get('runtime', 'the engine')}, {found.get('max_tokens', 0)}"
        " tokens each, with and without the draft in one run. Upright lines are 95 % bootstrap intervals.",
        figures=[one for one in figures if one],
        tables=[Table(title="What to set", head=head, rows=best, words=())] if best else [],
        folds=[Fold(title="Every cell", table=_every(cells, timed))] if cells else [],
    )


def _speeds(timed: Rows, tag: str) -> list[Figure | None]:
    """Draw the speed-up over the batch size, a line for each draft length, for each temperature."""
    figures: list[Figure | None] = []
    for temperature, rows in _by(timed, "temperature"):
        sizes = sorted({one["batch_size"] for one in rows})
        series = [
            _ranged(_tokens(tokens), [(sizes.index(one["batch_size"]), one["speedup"], one) for one in some])
            for tokens, some in _by(rows, "speculative_tokens")
        ]
        title, names = f"Speed-up over batch size{_at(temperature, timed)}", [str(size) for size in sizes]
        chart = Chart(title=title, x="prompts in a batch", y="times as fast", names=names, series=series, level=1.0)
        figures.append(lines(f"speed{tag}-{temperature:g}", chart, "At 1 is the same engine without the draft."))
    return figures


def _curves(advice: Rows, tag: str) -> list[Figure | None]:
    """Draw the speed-up over the draft length, a line for each batch size: what a setting is read from."""
    figures: list[Figure | None] = []
    for temperature, rows in _by(advice, "temperature"):
        series = [
            _ranged(
                f"batch {one['batch_size']}", [(at["speculative_tokens"], at["speedup"], {}) for at in one["curve"]]
            )
            for one in rows
        ]
        title = f"Speed-up over draft length{_at(temperature, advice)}"
        chart = Chart(title=title, x="speculative tokens", y="times as fast", series=series, level=1.0)
        figures.append(lines(f"advice{tag}-{temperature:g}", chart, "The highest point is the setting to take."))
    return figures


def _lengths(cells: Rows, tag: str) -> list[Figure | None]:
    """Draw the acceptance over the draft length, and by subset of the prompts, at the smallest batch size."""
    some = next((rows for _, rows in _by(cells, "batch_size")), [])
    if not some:
        return []
    series = [
        _ranged(f"temperature {temperature:g}", [(one["speculative_tokens"], length(one), one) for one in rows])
        for temperature, rows in _by(some, "temperature")
    ]
    title = "Acceptance length over draft length"
    whole = Chart(title=title, x="speculative tokens", y="tokens per draft + 1", series=series)
    first, rows = next(iter(_by(some, "temperature")))
    names = list(dict.fromkeys(name for one in rows for name in one.get("subsets") or {}))
    by_subset = [
        _ranged(_tokens(one['speculative_tokens']),
                [(names.index(name), length(counts), counts) for name, counts in (one.get("subsets") or {}).items()])
        for one in rows
    ]  # fmt: skip
    parts = Chart(title="Acceptance length by subset", x="prompts", y="tokens per draft + 1", names=names,
                  series=by_subset, zero=True)  # fmt: skip
    note = f"At temperature {first:g}." if len({one["temperature"] for one in some}) > 1 else ""
    return [lines(f"length{tag}", whole), bars(f"subsets{tag}", parts, note)]


def _every(cells: Rows, timed: Rows) -> Table:
    times = {_place(one): one for one in timed}
    rows: list[list[str]] = []
    for one in cells:
        time = times.get(_place(one), {})
        exact = one.get("lossless")
        rows.append([*(f"{value:g}" for value in _place(one)), f"{one['drafts']:,}", number(length(one)),
                     _interval(one, 3), number(time.get("speedup"), 2), _interval(time, 2),
                     identical(exact) if exact else "-"])  # fmt: skip
    head = ["temperature", "tokens", "batch", "drafts", "acceptance length", "interval", "speed-up", "interval",
            "identical"]  # fmt: skip
    return Table(head=head, rows=rows, words=())


def _place(cell: Mapping[str, Any]) -> tuple[float, int, int]:
    return cell["temperature"], cell["speculative_tokens"], cell["batch_size"]


def _interval(cell: Mapping[str, Any], digits: int) -> str:
    ends = cell.get("interval")
    return f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}" if ends else "-"


def _by(rows: Rows, name: str) -> list[tuple[Any, Rows]]:
    """Return rows by one of their values, sorted by it."""
    return [(value, [one for one in rows if one[name] == value]) for value in sorted({one[name] for one in rows})]


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _at(temperature: float, rows: Rows) -> str:
    """Say the temperature where there are several."""
    return f", temperature {temperature:g}" if len({one["temperature"] for one in rows}) > 1 else ""


def _ranged(name: str, points: Iterable[tuple[float, float | None, Mapping[str, Any]]]) -> Series:
    """Return a series of (x, y, what may have y's interval), in the order of x."""
    known = sorted((x, y, one.get("interval") or (y, y)) for x, y, one in points if y is not None)
    return Series(name=name, points=[(x, y) for x, y, _ in known], ranges=[(low, high) for *_, (low, high) in known])
