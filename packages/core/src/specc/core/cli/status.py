"""`specc status`: which artifacts exist, and which are stale."""

from __future__ import annotations

from pathlib import Path

import click

from specc.core.cli.decisions import as_data, reason
from specc.core.cli.options import SPEC, as_json, human, paint, print_json
from specc.core.compiler import compile_spec
from specc.core.errors import Exit
from specc.core.plan import Decision, decide

_STATES = {"hit": ("current", "green"), "build": ("stale", "yellow"), "build?": ("stale?", "cyan")}


@click.command("status", short_help="which artifacts exist, which are stale")
@SPEC
@as_json
def command(spec: Path, json: bool) -> int:
    """Show SPEC's artifacts: current, stale (and why), or missing."""
    compiled = compile_spec(spec)
    plan = compiled.plan()
    decisions = decide(plan, compiled.store)
    if json:
        stages = as_data(compiled, decisions, compiled.estimates())
        print_json({"name": plan.name, "class": plan.numerics, "stages": stages})
        return Exit.OK
    width = max(len(decision.stage.name) for decision in decisions)
    click.echo(f"{'stage':<{width}}  state    artifact      size     why")
    for decision in decisions:
        word, name = (
            ("missing", "red") if decision.last is None and decision.action != "hit" else _STATES[decision.action]
        )
        digest = decision.digest or (decision.last.digest if decision.last else None)
        size = human(compiled.store.manifest(digest).size) if _present(decision) and digest else ""
        why = "" if decision.action == "hit" else reason(compiled, decision)
        artifact = digest[:12] if digest else ""
        click.echo(
            f"{decision.stage.name:<{width}}  {paint(f'{word:<7}', name)}  {artifact:<12}  {size:<7}  {why}".rstrip()
        )
    return Exit.OK


def _present(decision: Decision) -> bool:
    return decision.action == "hit"
