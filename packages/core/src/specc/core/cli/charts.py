"""Charts as SVG: lines and bars with axes, for a page that brings colours and fonts by its style sheet.

A series is told apart by its colour, and without it by its dashes and marks, or by how its bars are filled: the classes
`s1` to `s6` stand for all of that. What a chart shows stands in its `desc` too, for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from xml.etree import ElementTree as ET

from specc.core.language.text import printable

WIDTH: Final = 360
HEIGHT: Final = 236
"""Of a chart, in pixels: as wide as a telephone shows it, so that its letters are as large as they say there."""
TOP: Final = 30
BOTTOM: Final = 42
RIGHT: Final = 14
TINY: Final = 1e-300
"""What is no span of values: a part of it has no logarithm any more."""
LETTER: Final = 6.4
"""Pixels that a letter takes, at most but for rare ones."""
STYLES: Final = 6
MARKS: Final = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",  # a disc
    "M-3.2-3.2H3.2V3.2H-3.2z",
    "M0-4.2 4.2 3.4H-4.2z",
    "M0-4.6 4.6 0 0 4.6-4.6 0z",
    "M0 4.2 4.2-3.4H-4.2z",
    "M-1.3-4.2H1.3V-1.3H4.2V1.3H1.3V4.2H-1.3V1.3H-4.2V-1.3H-1.3z",  # a cross
)
"""The marks of the series, around the point that they stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Values by place: `points` are (x, y), `ranges` (low, high) around each of them if they are known."""

    name: str
    points: Sequence[tuple[float, float]]
    ranges: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What a chart shows, and over what; `names` are the labels of x at 0, 1, … where they are no numbers.

    `digits` are those of a value behind the point. `level` is a value that a line is drawn at: 1 for a speed-up.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    names: Sequence[str] = ()
    digits: int = 2
    zero: bool = False
    level: float | None = None

    def label(self, x: float) -> str:
        """Return what stands below a place."""
        return printable(self.names[round(x)], 12) if self.names else f"{x:g}"

    def value(self, y: float) -> str:
        """Return a value as a person reads it."""
        return f"{y:.{self.digits}f}"

    def described(self) -> str:
        """Return the chart in words."""
        return "; ".join(
            f"{one.name}: " + ", ".join(f"{self.x} {self.label(x)} {self.value(y)}" for x, y in one.points)
            for one in self.series
        )


def lines(chart: Chart, name: str) -> str:
    """Return a chart with a line for each series; `name` is that of no other chart on the page."""
    root, axes = _framed(chart, name, [x for one in chart.series for x, _ in one.points])
    for index, one in enumerate(chart.series):
        group = _put(root, "g", {"class": f"series s{index % STYLES + 1}"})
        places = [(axes.across(x), axes.down(y)) for x, y in one.points]
        for (x, _), (low, high) in zip(one.points, one.ranges, strict=False):
            _put(group, "path", {"class": "range", "d": f"M{axes.across(x):.1f} {axes.down(low):.1f}"
                                                        f"V{axes.down(high):.1f}"})  # fmt: skip
        path = " ".join(f"{x:.1f} {y:.1f}" for x, y in places)
        _put(group, "path", {"class": "line", "d": f"M{path}"})
        for (x, y), (left, top) in zip(one.points, places, strict=True):
            mark = _put(group, "path", {"class": "mark", "d": MARKS[index % STYLES],
                                        "transform": f"translate({left:.1f} {top:.1f})"})  # fmt: skip
            _put(mark, "title", {}, f"{one.name}, {chart.x} {chart.label(x)}: {chart.value(y)}")
    return ET.tostring(root, encoding="unicode")


def bars(chart: Chart, name: str) -> str:
    """Return a chart with a group of bars at each place, a bar for each series; values stand on them if they fit."""
    count = max((len(one.points) for one in chart.series), default=0)
    root, axes = _framed(chart, name, [-0.5, count - 0.5], list(range(count)))
    room = (axes.across(1) - axes.across(0)) * 0.8
    wide = min(room / max(1, len(chart.series)), 38)
    for index, one in enumerate(chart.series):
        group = _put(root, "g", {"class": f"series s{index % STYLES + 1}"})
        for place, (x, y) in enumerate(one.points):
            left, top = axes.across(x) + wide * (index - len(chart.series) / 2), axes.down(y)
            bar = _put(group, "rect", {"class": "bar", "x": f"{left + 1:.1f}", "y": f"{top:.1f}",
                                       "width": f"{wide - 2:.1f}", "height": f"{axes.down(0) - top:.1f}"})  # fmt: skip
            _put(bar, "title", {}, f"{one.name}, {chart.x} {chart.label(x)}: {chart.value(y)}")
            middle = left + wide / 2
            if place < len(one.ranges):
                low, high = one.ranges[place]
                _put(group, "path", {"class": "range", "d": f"M{middle:.1f} {axes.down(low):.1f}"
                                                            f"V{axes.down(high):.1f}"})  # fmt: skip
                top = axes.down(high)
            if len(said := chart.value(y)) * LETTER * 0.86 < wide:
                _put(group, "text", {"class": "said", "x": f"{middle:.1f}", "y": f"{top - 4:.1f}"}, said)
    return ET.tostring(root, encoding="unicode")


def key(index: int, *, bar: bool) -> str:
    """Return the small picture that stands for a series in a legend."""
    root = ET.Element("svg", {"viewBox": "0 0 28 12", "class": f"key s{index % STYLES + 1}", "aria-hidden": "true"})
    if bar:
        _put(root, "rect", {"class": "bar", "x": 8, "y": 1, "width": 12, "height": 10})
    else:
        _put(root, "path", {"class": "line", "d": "M1 6H27"})
        _put(root, "path", {"class": "mark", "d": MARKS[index % STYLES], "transform": "translate(14 6)"})
    return ET.tostring(root, encoding="unicode")


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers, evenly spaced and some `wanted` of them, that the values from `low` to `high` lie among."""
    span = next((one for one in (high - low, abs(high)) if one > TINY), 1.0)
    rough = span / wanted
    scale = 10.0 ** math.floor(math.log10(rough))
    step = scale * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * scale >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class _Axes:
    """The part of a chart that values are drawn in: its edges in pixels, and what they stand for."""

    left: float
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def across(self, x: float) -> float:
        return self.left + (x - self.low_x) / ((self.high_x - self.low_x) or 1) * (WIDTH - RIGHT - self.left)

    def down(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self.low_y) / ((self.high_y - self.low_y) or 1) * (HEIGHT - BOTTOM - TOP)


def _framed(chart: Chart, name: str, across: Sequence[float], places: Sequence[float] = ()) -> tuple[ET.Element, _Axes]:
    """Return a chart without its series, and where they go; `places` are the labels of x if not all `across`."""
    values = [y for one in chart.series for _, y in one.points]
    values += [end for one in chart.series for ends in one.ranges for end in ends]
    values += [0.0] * chart.zero + ([] if chart.level is None else [chart.level])
    high = max(values, default=1.0)
    rows = ticks(min(values, default=0.0), high * 1.06 if places else high)  # values stand on bars
    digits = max(len(f"{row:g}".partition(".")[2]) for row in rows)
    texts = [f"{row:.{digits}f}" for row in rows]
    inset = 8 if not places else 0
    axes = _Axes(14 + LETTER * max(map(len, texts)), min(across, default=0), max(across, default=1), rows[0], rows[-1])
    if inset:  # marks do not stand on the axis
        extra = (axes.high_x - axes.low_x or 1) * inset / (WIDTH - RIGHT - axes.left)
        axes = _Axes(axes.left, axes.low_x - extra, axes.high_x + extra, axes.low_y, axes.high_y)
    root = ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "chart", "role": "img",
                              "aria-labelledby": f"{name}-title {name}-desc"})  # fmt: skip
    _put(root, "title", {"id": f"{name}-title"}, chart.title)
    _put(root, "desc", {"id": f"{name}-desc"}, chart.described())
    for row, text in zip(rows, texts, strict=True):
        level = axes.down(row)
        _put(root, "path", {"class": "axis" if row == rows[0] else "grid", "d": f"M{axes.left:.1f} {level:.1f}"
                                                                                f"H{WIDTH - RIGHT}"})  # fmt: skip
        _put(root, "text", {"class": "tick end", "x": f"{axes.left - 7:.1f}", "y": f"{level + 4:.1f}"}, text)
    if chart.level is not None:
        level = axes.down(chart.level)
        _put(root, "path", {"class": "level", "d": f"M{axes.left:.1f} {level:.1f}H{WIDTH - RIGHT}"})
    for x in _labelled(chart, axes, sorted(set(places or across))):
        _put(root, "text", {"class": "tick middle", "x": f"{axes.across(x):.1f}", "y": HEIGHT - BOTTOM + 17},
             chart.label(x))  # fmt: skip
    _put(root, "text", {"class": "unit", "x": 2, "y": 14}, chart.y)
    _put(root, "text", {"class": "unit middle", "x": f"{(axes.left + WIDTH - RIGHT) / 2:.1f}", "y": HEIGHT - 6},
         chart.x)  # fmt: skip
    return root, axes


def _labelled(chart: Chart, axes: _Axes, places: Sequence[float]) -> list[float]:
    """Return those of the places whose labels do not run into one another."""
    gaps = [axes.across(right) - axes.across(left) for left, right in pairwise(places)]
    need = LETTER * max((len(chart.label(x)) for x in places), default=1) + 6
    each = math.ceil(need / min(gaps)) if gaps and min(gaps) > 0 else 1
    return [x for index, x in enumerate(places) if (len(places) - 1 - index) % each == 0]


def _put(parent: ET.Element, tag: str, attributes: dict[str, object], text: str | None = None) -> ET.Element:
    """Add an element; what is markup in its text and attributes is escaped when it is written."""
    element = ET.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
    element.text = text if text is None else printable(text, 4000)
    return element
