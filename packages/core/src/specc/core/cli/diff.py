"""`specc diff`: what changed in meaning between two sides, which stages that rebuilds, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from specc.core.cli.options import ONLY, columns, human, minutes, one_format, print_json
from specc.core.compiler import MANY, show
from specc.core.diff import Comparison, Difference, Rebuilt, compare, sides
from specc.core.errors import Exit, SpeccError
from specc.core.language.words import listed
from specc.core.measure.results import Measured, Result, read_result, side_by_side
from specc.core.plan import total

FORMATS: Final = ("text", "markdown", "json")
WIDEST: Final = 48
"""Characters of a path or a value in a column of text; longer ones push the rest of their line."""


@click.command("diff", short_help="what changed in meaning between two specs, locks, revisions or artifacts")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Markdown is for a review's comment.")
@click.option("--json", "as_json", is_flag=True, help="The same as `--format json`.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 5 when something would be built anew.")
@ONLY
def command(  # noqa: PLR0917 - click passes by name
    before: str, after: str, form: str | None, as_json: bool, detailed_exitcode: bool, only: tuple[str, ...]
) -> int:
    """Compare A and B: each a spec, a lock, `REVISION:path` of either, or the start of an artifact's id.

    Of two evaluations, or two benchmarks, what was measured stands side by side too; two files that
    `specc evaluate --to` wrote are compared by that alone.

    Values are compared as they are resolved, so that comments, the order of keys and a default that is written out
    are no change. Stages are those that B builds anew where A was built, with what that takes on this machine.
    """
    chosen = one_format(form, as_json, "text")
    one, two = read_result(before), read_result(after)
    if one and two and one.kind == two.kind:
        if not (one.stored and two.stored):  # of a file it is not known what was measured
            _print_measured(one, two, chosen)
            return Exit.OK
    elif (one and not one.stored) or (two and not two.stored):
        raise SpeccError("an evaluation or a benchmark is compared with another one of its kind", code=Exit.USAGE,
                         hint="give two artifacts' ids, or two files that `specc evaluate --to` wrote")  # fmt: skip
    found = compare(sides(before, only), sides(after, only))
    measured = side_by_side(one, two) if one and two and one.kind == two.kind else []
    if chosen == "json":
        print_json({**_data(found), **({"measured": _measured_data(measured)} if measured else {})})
    else:
        click.echo(_markdown(found) if chosen == "markdown" else _text(found))
        if one and two and measured:
            click.echo()
            _print_measured(one, two, chosen)
    return Exit.WORK if detailed_exitcode and found.rebuilt else Exit.OK


def _print_measured(before: Result, after: Result, form: str) -> None:
    """Print what two results measured side by side."""
    found = side_by_side(before, after)
    if form == "json":
        print_json({"before": before.label, "after": after.label, "measured": _measured_data(found)})
        return
    rows = [("where", "measured", before.label, after.label, "difference", "intervals")]
    rows += [(one.where, one.name, _figure(one.before), _figure(one.after), _figure(one.difference, sign="+"),
              {True: "overlap", False: "apart", None: "-"}[one.overlap]) for one in found]  # fmt: skip
    for line in _table(rows) if form == "markdown" else columns(rows):
        click.echo(line)


def _measured_data(found: Sequence[Measured]) -> list[dict[str, Any]]:
    return [{**asdict(one), "difference": one.difference} for one in found]


def _figure(value: float | None, *, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.0f}"


def _data(found: Comparison) -> dict[str, Any]:
    return {
        "before": found.before,
        "after": found.after,
        "differences": [asdict(one) for one in found.differences],
        "rebuilt": [asdict(one) for one in found.rebuilt],
        "dropped": list(found.dropped),
        "added": list(found.added),
        "removed": list(found.removed),
    }


def _text(found: Comparison) -> str:
    lines = [f"{found.before} → {found.after}", *(f"  {line}" for line in _builds(found))]
    rows = [(one.path, _change(one), _of(one)) for one in found.differences]
    lines += [f"  {line}" for line in columns(rows, WIDEST)]
    if found.rebuilt or found.dropped:
        lines += ["", *(f"  {line}" for line in columns(_stages(found), WIDEST))]
    return "\n".join([*lines, *([""] if found.differences else []), _sum(found)])


def _markdown(found: Comparison) -> str:
    """Return the comparison for a review's comment: tables, and what a reader wants to know in the first line."""
    lines = [f"**{_sum(found)}**", "", f"`{found.before}` → `{found.after}`"]
    lines += ["", *(f"- {line}" for line in _builds(found))] if found.added or found.removed else []
    if found.differences:
        rows = [(f"`{one.path}`", _cell(one.before), _cell(one.after), _of(one)) for one in found.differences]
        lines += ["", *_table([("value", "before", "after", "where, and the stages that read it"), *rows])]
    if found.rebuilt or found.dropped:
        lines += ["", *_table(_stages(found))]
    return "\n".join(lines)


def _builds(found: Comparison) -> list[str]:
    """Return a line for each build of a matrix that only one side has, or for all of them if they are many."""
    lines: list[str] = []
    for builds, what in ((found.added, "new"), (found.removed, "no longer")):
        named = [f"{what} in the matrix: {listed([build])}" for build in builds]
        lines += named if len(named) <= MANY else [f"{what} in the matrix: {len(named)} builds"]
    return lines


def _sum(found: Comparison) -> str:
    """Return the comparison in one sentence."""
    if not (found.differences or found.rebuilt or found.dropped or found.added or found.removed):
        return "no difference in meaning"
    count = len(found.differences)
    values = f"{count} value{'s differ' if count != 1 else ' differs'}"
    if not found.rebuilt:
        return f"{values}, nothing is built anew"
    anew = sum(one.count for one in found.rebuilt)
    line = f"{values}, {anew} of {found.stages} stages {'is' if anew == 1 else 'are'} built anew"
    known = [one.estimate for one in found.rebuilt if one.estimate is not None]
    if len(known) != len(found.rebuilt):
        return line
    cost = total(known)
    rates = "measured" if cost.measured else "declared"
    about = "about" if cost.complete else "more than"
    return f"{line}: {about} {minutes(cost.seconds)} ({rates} rates), {human(cost.disk)} on disk"


def _change(one: Difference) -> str:
    return f"{show(one.before)} → {show(one.after)}"


def _cell(value: object) -> str:
    """Return a value for a cell of a Markdown table: a hostile spec can neither end the cell nor the code in it."""
    plain = show(value).replace("`", "'").replace("|", "\\|").replace("\n", " ")
    return f"`{plain}`" if value is not None else ""


def _of(one: Difference) -> str:
    """Return where the new value stands and which stages read it."""
    readers = ", ".join(one.stages) if one.stages else "in no key: nothing is built anew"
    kind = {"value": "", "engine": "engine of ", "version": "code of "}[one.kind]
    return f"{one.where}, {kind}{readers}" if one.where else f"{kind}{readers}"


def _stages(found: Comparison) -> list[tuple[str, ...]]:
    """Return what happens to stages as a table with its head."""
    rows = [
        (f"{one.stage} × {one.count}" if one.count > 1 else one.stage, *_cost(one), _why(one)) for one in found.rebuilt
    ]
    return [("stage", "time", "disk", "why"), *rows, *((name, "", "", "no longer there") for name in found.dropped)]


def _why(one: Rebuilt) -> str:
    match one.why:
        case "new":
            return "not there before"
        case "changed":
            return "its own values, code or engines"
        case "input":
            several = "s" if len(one.inputs) > 1 else ""
            return f"by its input{several} {listed(one.inputs)}, unless that comes out the same"


def _cost(one: Rebuilt) -> tuple[str, str]:
    return (minutes(one.estimate.seconds), human(one.estimate.disk)) if one.estimate else ("", "")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table whose first row is its head."""
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]
