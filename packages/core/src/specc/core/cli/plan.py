"""`specc plan`: what a build would do, why, and what it would take."""

from __future__ import annotations

from pathlib import Path

import click

from specc.core.cli.decisions import as_data, estimate_data, summary, table, work
from specc.core.cli.options import SPEC, as_json, print_json, words
from specc.core.compiler import compile_spec, describe
from specc.core.errors import Exit
from specc.core.files import pretty, write_atomic
from specc.core.plan import decide, total


@click.command("plan", short_help="show what a build would do, and why")
@SPEC
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 5 when there is work to do.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the plan to this file as JSON.")
@click.option("--class", "machine", metavar="CLASS", help="Plan for another class of machine (default: the lock's).")
@as_json
def command(spec: Path, detailed_exitcode: bool, out: Path | None, machine: str | None, json: bool) -> int:
    """Show which stages of SPEC a build would run, and what they would take; nothing is written or started."""
    compiled = compile_spec(spec, machine=machine)
    plan = compiled.plan()
    decisions = decide(plan, compiled.store)
    found = compiled.estimates()
    data = {
        "name": plan.name,
        "class": plan.numerics,
        "stages": as_data(compiled, decisions, found),
        "estimate": estimate_data(total(work(decisions, found))),
    }
    if out is not None:
        write_atomic(out, pretty(data))
    if json:
        print_json(data)
    else:
        click.echo(table(compiled, decisions, found))
        click.echo(summary(compiled, decisions, found))
        if compiled.before is None:
            words(f"there is no lock yet: `specc lock {spec}` writes it, and so does `specc build`")
        for moved in compiled.moved:
            words(f"the lock is stale: {describe(compiled, moved)}")
    missing = any(decision.action != "hit" for decision in decisions)
    return Exit.WORK if detailed_exitcode and missing else Exit.OK
