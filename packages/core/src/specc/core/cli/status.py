"""`specc status`: which artifacts exist, and which are stale."""

from __future__ import annotations

from pathlib import Path

import click

from specc.core.cli.compare import print_compared
from specc.core.cli.decisions import as_data, decided, reason, steps
from specc.core.cli.options import ONLY, PROFILE, SPEC, as_json, human, paint, print_json
from specc.core.compiler import compile_builds
from specc.core.errors import Exit

_STATES = {
    "hit": ("current", "green"),
    "build": ("stale", "yellow"),
    "build?": ("stale?", "cyan"),
    "stream": ("stream", "blue"),
}


@click.command("status", short_help="which artifacts exist, which are stale")
@SPEC
@PROFILE
@ONLY
@as_json
def command(spec: Path, profile: Path | None, only: tuple[str, ...], json: bool) -> int:
    """Show SPEC's artifacts: current, stale (and why), or missing; of a matrix, its builds by their acceptance."""
    chosen = compile_builds(spec, profile=profile).chosen(only)
    if len(chosen) > 1:
        return print_compared(chosen, json=json)
    compiled = chosen[0]
    if json:
        print_json({"name": compiled.name, "class": compiled.plan.numerics, "stages": as_data(steps(chosen))})
        return Exit.OK
    decisions = decided(chosen)[0]
    width = max(len(decision.stage.name) for decision in decisions)
    click.echo(f"{'stage':<{width}}  state    artifact      size     why")
    for decision in decisions:
        word, name = ("missing", "red") if decision.last is None and decision.due else _STATES[decision.action]
        digest = decision.digest or (decision.last.digest if decision.last else None)
        size = human(compiled.store.manifest(digest).size) if decision.action == "hit" and digest else ""
        why = "" if decision.action == "hit" else reason(compiled, decision)
        artifact = digest[:12] if digest else ""
        click.echo(
            f"{decision.stage.name:<{width}}  {paint(f'{word:<7}', name)}  {artifact:<12}  {size:<7}  {why}".rstrip()
        )
    return Exit.OK
