"""The shape of a report: sections of charts, tables and what is folded away, as one HTML file that loads nothing.

What is in it is out of specs and artifacts of anybody: the template escapes it, and SVG is written by a library that
does. The page's own style is named by its hash in a policy that forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup

from specc.core.cli import charts
from specc.core.cli.charts import Chart
from specc.core.cli.svg import STYLE
from specc.core.language.text import printable

LONGEST: Final = 48
"""Characters of a name in a legend or a heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows below a head; the columns `words` hold words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Collection[int] = (0,)
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with its legend, and the numbers it was drawn from."""

    title: str
    picture: Markup
    legend: Sequence[tuple[Markup, str]]
    numbers: Table
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What is folded away until it is asked for: a table, a text or a drawing."""

    title: str
    table: Table | None = None
    text: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    drawing: Markup | None = None
    folds: Sequence[Fold] = ()


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that is said first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands above the sections.

    `about` are facts in a few words each, `digest` is that of what the page is of, `serve` what `specc serve` takes,
    `verdicts` say of each check whether it is met, and `stale` names the stages that the spec would build anew.
    """

    title: str
    about: Sequence[str]
    digest: str
    serve: str
    verdicts: Sequence[tuple[bool, str]]
    stale: Sequence[str]
    facts: Sequence[Fact]


def render(head: Head, sections: Sequence[Section]) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.jinja").render(
        head=head,
        sections=sections,
        style=Markup(style),  # noqa: S704 - ours
        hashes=[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, STYLE)],
        version=metadata.version("specc"),
    )


def lines(name: str, chart: Chart, note: str = "") -> Figure | None:
    """Return a figure of lines, None if there is nothing to draw; `name` is that of no other on the page."""
    return _figure(name, chart, charts.lines, bar=False, note=note)


def bars(name: str, chart: Chart, note: str = "") -> Figure | None:
    """Return a figure of bars, None if there is nothing to draw; `name` is that of no other on the page."""
    return _figure(name, chart, charts.bars, bar=True, note=note)


def _figure(name: str, chart: Chart, draw: Callable[[Chart, str], str], *, bar: bool, note: str) -> Figure | None:
    """Draw at most as many series as can be told apart; the table below has them all."""
    series = [one for one in chart.series if one.points]
    if not series:
        return None
    drawn = replace(chart, series=series[: charts.STYLES])
    places = list(dict.fromkeys(x for one in series for x, _ in one.points))
    by_place = [dict(one.points) for one in series]
    rows = [[chart.label(x), *(chart.value(one[x]) if x in one else "-" for one in by_place)] for x in sorted(places)]
    legend = [(Markup(charts.key(index, bar=bar)), short(one.name)) for index, one in enumerate(drawn.series)]  # noqa: S704 - ours
    left_out = f"The first {charts.STYLES} of {len(series)}; the table has all." if len(series) > charts.STYLES else ""
    return Figure(
        title=chart.title,
        picture=Markup(draw(drawn, f"chart-{name}")),  # noqa: S704 - ours
        legend=legend if len(series) > 1 else [],
        numbers=Table(head=[chart.x, *(short(one.name) for one in series)], rows=rows, words=()),
        note=" ".join(part for part in (note, left_out) if part),
    )


def short(text: str) -> str:
    """Return a name as it may stand in a heading or a legend."""
    return printable(text, LONGEST)
