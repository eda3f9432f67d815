"""`specc logs`: what a stage's engines printed."""

from __future__ import annotations

from pathlib import Path

import click

from specc.core.cli.options import ONLY, PROFILE, SPEC, as_json, print_json
from specc.core.errors import Exit, SpeccError
from specc.core.plan import ROWS, decide


@click.command("logs", short_help="what a stage's engines printed")
@SPEC
@click.argument("stage", type=click.Choice(list(ROWS)))
@click.option("--path", "only_path", is_flag=True, help="Print where the log is, to follow it with another tool.")
@PROFILE
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    spec: Path, stage: str, only_path: bool, profile: Path | None, only: tuple[str, ...], json: bool
) -> int:
    """Print the log of STAGE's last run for SPEC as it stands: of a failed run too."""
    from specc.core.compiler import compile_spec
    from specc.core.execute import machine_name

    compiled = compile_spec(spec, machine=machine_name(), only=only, profile=profile)
    decisions = {decision.stage.name: decision for decision in decide(compiled.plan, compiled.store)}
    if stage not in decisions:
        raise SpeccError(f"this spec has no stage `{stage}`", hint=f"its stages are: {', '.join(decisions)}")
    found, file = decisions[stage], "{key}.log"
    if found.action == "stream":  # it runs beside the stage that reads it, whose log it is in
        found = next(one for one in decisions.values() if stage in one.stage.row.inputs.values())
        file = "{key}/producer-1.log"
    last = compiled.store.last(compiled.name, found.stage.name)
    keys = [key for key in (found.key, last.key if last else None) if key]
    places = [compiled.store.root / "logs" / file.format(key=key) for key in keys]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise SpeccError(f"`{stage}` has no log: it never ran here", where=str(compiled.store.root / "logs"),
                         hint=f"`specc build {spec} --stage {found.stage.name}` runs it")  # fmt: skip
    if json:
        print_json({"stage": stage, "path": str(path), "log": path.read_text(errors="replace")})
    elif only_path:
        click.echo(str(path))
    else:
        click.echo(path.read_text(errors="replace"), nl=False)
    return Exit.OK
