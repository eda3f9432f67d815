"""`specc plan`: what a build would do, why, and what it would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from specc.core.cli.decisions import (
    Step,
    as_data,
    class_of_profile,
    estimate_data,
    grouped,
    refuse_unrunnable,
    steps,
    summary,
    table,
    uncounted,
    warnings,
    work,
)
from specc.core.cli.options import ONLY, PROFILE, SPEC, as_json, print_json, words
from specc.core.compiler import Compiled, compile_builds, describe
from specc.core.errors import Exit
from specc.core.files import pretty, write_atomic
from specc.core.plan import total


@click.command("plan", short_help="show what a build would do, and why")
@SPEC
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 5 when there is work to do.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file as JSON.")
@click.option("--class", "machine", metavar="CLASS", help="Plan for another class of machine (default: the lock's).")
@PROFILE
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    spec: Path,
    detailed_exitcode: bool,
    out: Path | None,
    machine: str | None,
    profile: Path | None,
    only: tuple[str, ...],
    json: bool,
) -> int:
    """Show which stages of SPEC a build would run, and what they would take; nothing is written or started.

    Of a spec with a matrix, what its builds share is shown and counted once.
    """
    builds = compile_builds(spec, machine=machine, profile=profile)
    chosen = builds.chosen(only)
    refuse_unrunnable(chosen)
    found = steps(chosen)
    if json or out is not None:
        data = _data(chosen, found)
        if out is not None:
            write_atomic(out, pretty(data))
        if json:
            print_json(data)
    if not json:
        click.echo(table(found) if len(chosen) == 1 else grouped(found))
        click.echo(summary(found, len(chosen)))
        if lacks := uncounted(chosen, found):
            words(f"note: {lacks}")
        for warning in warnings(chosen):
            words(f"warning: {warning}")
        if changed := class_of_profile(chosen[0]):
            words(changed)
        if builds.before is None:
            words(f"there is no lock yet: `specc lock {spec}` writes it, and so does `specc build`")
        for moved, compiled in builds.moved:
            words(f"the lock is stale: {describe(compiled, moved)}")
    return Exit.WORK if detailed_exitcode and work(found) else Exit.OK


def _data(chosen: Sequence[Compiled], found: list[Step]) -> dict[str, Any]:
    """Return a plan as data; each build of a matrix names its stages by their recipes."""
    plan = chosen[0].plan
    data = {
        "name": str(chosen[0].lock.locked.values["name"]),
        "class": plan.numerics,
        "stages": as_data(found),
        "estimate": estimate_data(total(work(found))),
        "warnings": warnings(chosen),
    }
    if chosen[0].build:
        data["builds"] = {one.build: [stage.recipe for stage in one.plan.stages] for one in chosen}
    return data
