"""`specc schema`: the JSON Schema of the language or the lock, one field's page, or whether they are current."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from specc.core.errors import SpeccError, SpeccErrors
from specc.core.language.schema import FILE, Schema, build_schema, fields, published_path, render
from specc.core.language.words import first_sentence, words
from specc.core.lock import schema as lock

PUBLISHED: Final = "published"


@dataclass(frozen=True, slots=True)
class Kind:
    """A schema that specc publishes: of what, its file, how it is made, and the command that prints it."""

    of: str
    file: str
    build: Callable[[], Schema]
    command: str


LANGUAGE: Final = Kind("the language", FILE, build_schema, "specc schema")
LOCK: Final = Kind("the lock", lock.FILE, lock.build_lock_schema, "specc schema --lock")


@click.command("schema")
@click.option("--lock", "of_lock", is_flag=True, help="The lock's schema in place of the language's.")
@click.option("--field", metavar="PATH", help="Print one field's page, such as `train.optimizer`.")
@click.option("--check", "file", is_flag=False, flag_value=PUBLISHED, metavar="[FILE]",
              help="Compare FILE, by default every published schema, with what the models say.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a field's part of the schema as JSON.")
def command(of_lock: bool, field: str | None, file: str | None, as_json: bool) -> None:
    """Print the JSON Schema (Draft-07) of the language, or with `--lock` that of the lock."""
    kind = LOCK if of_lock else LANGUAGE
    if file == PUBLISHED:
        _compare([(kind, published_path(kind.file)) for kind in ((LOCK,) if of_lock else (LANGUAGE, LOCK))])
    elif file is not None:
        _compare([(kind, Path(file))])
    elif field is not None:
        known = fields(kind.build())
        found, required = _find(kind, known, field)
        click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else _page(known, field, found, required))
    else:
        click.echo(render(kind.build()), nl=False)


def _compare(files: list[tuple[Kind, Path]]) -> None:
    """Compare files with what they should be; raises `SpeccErrors` with every one that differs."""
    errors: list[SpeccError] = []
    for kind, path in files:
        try:
            current = path.read_text(encoding="utf-8") == render(kind.build())
        except (OSError, UnicodeDecodeError):
            errors.append(SpeccError("the schema cannot be read", where=str(path),
                                     hint=f"`{kind.command} > {path}` writes it"))  # fmt: skip
            continue
        if current:
            click.echo(f"ok: {path}", err=True)
        else:
            errors.append(SpeccError("the schema differs from what the models say", where=str(path),
                                     hint=f"`{kind.command} > {path}` writes it anew"))  # fmt: skip
    if errors:
        raise SpeccErrors(errors)


def _find(kind: Kind, known: dict[str, tuple[Schema, bool]], path: str) -> tuple[Schema, bool]:
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        near = near or [name for name in known if name.rpartition(".")[2] == path.rpartition(".")[2]]
        hint = f"did you mean `{near[0]}`?" if near else f"`{kind.command}` prints them all"
        raise SpeccError(f"{kind.of} has no field `{path}`", hint=hint)
    return known[path]


def _page(known: dict[str, tuple[Schema, bool]], path: str, rule: Schema, required: bool) -> str:
    """Return a field's page: what it is, what it takes, its default, and the fields inside it."""
    lines = [path, f"  {rule['description']}", "", f"  takes    {words(rule)}"]
    if required:
        lines.append("  required")
    if "default" in rule:
        lines.append(f"  default  {json.dumps(rule['default'], ensure_ascii=False)}")
    prefix = path + "."
    inner = {name.removeprefix(prefix): item for name, (item, _) in known.items()
             if name.startswith(prefix) and "." not in name.removeprefix(prefix)}  # fmt: skip
    if inner:
        width = max(map(len, inner))
        lines += ["", "  fields"]
        lines += [f"    {name:<{width}}  {first_sentence(item['description'])}" for name, item in inner.items()]
    return "\n".join(lines)
