"""`specc check`: schema and cross-field checks of specs, offline, without an engine."""

from __future__ import annotations

from pathlib import Path

import click

from specc.core.cli.options import one_format
from specc.core.cli.reports import FORMATS, Finding, Good, Report
from specc.core.errors import SpeccError
from specc.core.language import check


@click.command("check")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="Print what was found as words (the default), JSON, annotations of a GitHub workflow, or a SARIF log.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as `--format json`.")
def command(specs: tuple[Path, ...], form: str | None, as_json: bool) -> int:
    """Check specs: their text, the schema, the rules between fields, and the files that they name.

    Nothing is run and no network is used, so a stranger's spec is safe to check. All errors are shown at once.
    """
    chosen = FORMATS[one_format(form, as_json, "text")]
    report = _check(specs)
    for item in report.good:
        click.echo(f"ok: {item.file}", err=True)
    said = chosen.render(report).encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
    click.echo(said, nl=False, err=chosen.words)
    return report.code


def _check(specs: tuple[Path, ...]) -> Report:
    good: list[Good] = []
    findings: list[Finding] = []
    for path in specs:
        try:
            checked = check(path, files=True)
        except SpeccError as error:
            findings += [Finding(path, item) for item in error.errors]
        else:
            good.append(Good(str(path), checked[0].spec.name))
    return Report(tuple(good), tuple(findings))
