"""What several commands share: their argument, `--json`, and where words go."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from specc.core.errors import Exit, SpeccError

SPEC = click.argument("spec", type=click.Path(path_type=Path))
MEASURED: Final = {"draft": "metrics.json", "evaluation": "evaluation.json", "benchmark": "benchmark.json"}
"""The file of a stage's artifact that holds what it measured."""
ONLY = click.option(
    "--only",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Of a spec with a matrix, the builds that have this value; may be repeated.",
)
PROFILE = click.option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file whose `runtime` goes before the spec's; it is not in the lock.",
)
as_json = click.option("--json", "json", is_flag=True, help="Print one JSON object on standard output.")


def one_format(form: str | None, json: bool, default: str) -> str:
    """Return the format that is asked for; raises `SpeccError` (exit code 2) if `--json` asks for another one too."""
    if json and form not in (None, "json"):
        raise SpeccError(f"`--json` and `--format {form}` are two formats, and one is printed",
                         hint="leave one of them out", code=Exit.USAGE)  # fmt: skip
    return "json" if json else form or default


def print_json(value: object) -> None:
    """Print data on standard output."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def words(text: str) -> None:
    """Print words on standard error, without colour unless a terminal reads them."""
    click.echo(text, err=True, color=None if colour(sys.stderr.isatty()) else False)


def colour(terminal: bool) -> bool:
    """Tell whether colour is wanted: on a terminal, and not when `NO_COLOR` is set (https://no-color.org)."""
    return terminal and not os.environ.get("NO_COLOR")


def paint(text: str, name: str) -> str:
    """Colour a word for a terminal."""
    return click.style(text, fg=name) if colour(sys.stdout.isatty()) else text


def columns(rows: Sequence[Sequence[str]], widest: int | None = None) -> list[str]:
    """Return rows of cells as lines; a cell of more than `widest` characters pushes the rest of its line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [min(width, widest or width) for width in widths]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, cells, strict=True)).rstrip() for row in rows]


def human(size: float) -> str:
    """Return bytes as a person says them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def number(value: object, digits: int = 3) -> str:
    """Return a measured number for a cell of a table; a dash for what was not measured."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def minutes(seconds: float) -> str:
    """Return a duration as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
