"""`specc schema`: the language's JSON Schema, one field's page, or whether the committed file is current."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import click

from specc.core.errors import SpeccError
from specc.core.language.schema import Schema, build_schema, fields, published_path, render_schema
from specc.core.language.words import first_sentence, words

PUBLISHED = "published"


@click.command("schema")
@click.option("--field", metavar="PATH", help="Print one field's page, such as `train.optimizer`.")
@click.option("--check", "file", is_flag=False, flag_value=PUBLISHED, metavar="[FILE]",
              help="Compare FILE, by default the published schema, with what the models say.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a field's part of the schema as JSON.")
def command(field: str | None, file: str | None, as_json: bool) -> None:
    """Print the language's JSON Schema (Draft-07)."""
    if file is not None:
        _compare(published_path() if file == PUBLISHED else Path(file))
    elif field is not None:
        found, required = _find(field)
        click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else _page(field, found, required))
    else:
        click.echo(render_schema(), nl=False)


def _compare(path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpeccError("the schema cannot be read", where=str(path),
                         hint=f"`specc schema > {path}` writes it") from error  # fmt: skip
    if text != render_schema():
        raise SpeccError("the schema differs from what the models say", where=str(path),
                         hint=f"`specc schema > {path}` writes it anew")  # fmt: skip
    click.echo(f"ok: {path}", err=True)


def _find(path: str) -> tuple[Schema, bool]:
    known = fields(build_schema())
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        near = near or [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]
        raise SpeccError(f"the language has no field `{path}`",
                         hint=f"did you mean `{near[0]}`?" if near else "`specc schema` prints them all")  # fmt: skip
    return known[path]


def _page(path: str, rule: Schema, required: bool) -> str:
    """Return a field's page: what it is, what it takes, its default, and the fields inside it."""
    lines = [path, f"  {rule['description']}", "", f"  takes    {words(rule)}"]
    if required:
        lines.append("  required")
    if "default" in rule:
        lines.append(f"  default  {json.dumps(rule['default'], ensure_ascii=False)}")
    prefix = path + "."
    inner = {name.removeprefix(prefix): item for name, (item, _) in fields(build_schema()).items()
             if name.startswith(prefix) and "." not in name.removeprefix(prefix)}  # fmt: skip
    if inner:
        width = max(map(len, inner))
        lines += ["", "  fields"]
        lines += [f"    {name:<{width}}  {first_sentence(item['description'])}" for name, item in inner.items()]
    return "\n".join(lines)
