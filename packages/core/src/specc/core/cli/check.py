"""`specc check`: schema and cross-field checks of specs, offline, without an engine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from specc.core.errors import SpeccError, SpeccErrors
from specc.core.language import check


@click.command("check")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what was checked as JSON.")
def command(specs: tuple[Path, ...], as_json: bool) -> None:
    """Check specs: their text, the schema, the rules between fields, and the files that they name.

    Nothing is run and no network is used, so a stranger's spec is safe to check. All errors are shown at once.
    """
    errors: list[SpeccError] = []
    good: list[dict[str, str]] = []
    for path in specs:
        try:
            checked = check(path, files=True)
        except SpeccErrors as several:
            errors += several.errors
        except SpeccError as error:
            errors.append(error)
        else:
            good.append({"file": str(path), "name": checked.spec.name})
            click.echo(f"ok: {path}", err=True)
    if errors:
        raise SpeccErrors(errors)
    if as_json:
        click.echo(json.dumps({"specs": good}, indent=2, ensure_ascii=False))
