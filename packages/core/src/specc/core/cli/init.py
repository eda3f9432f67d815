"""`specc init`: a spec to start from, with what it needs for its first check."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Final

import click

from specc.core.errors import SpeccError
from specc.core.language.document import Document
from specc.core.language.rules import named_files
from specc.core.language.schema import FILE as SCHEMA_FILE
from specc.core.language.schema import published_path

STARTER: Final = Path(__file__).with_name("starter.yaml")
PROMPTS: Final = (
    "Explain to a child why the sky is blue.",
    "Write a short thank-you note to a neighbour.",
    "What is the difference between weather and climate?",
    "Give me three ideas for a quick dinner with eggs.",
    "How do I remove a coffee stain from a shirt?",
    "Write a Python function that reverses a list.",
    "Summarise the story of Cinderella in four sentences.",
    "What should I check before I buy a used bicycle?",
)
_MODELINE: Final = re.compile(r"\A(#[^\n]*\$schema[^\n]*\n)+(#\n)?")


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "example", metavar="NAME", help="Copy a shipped example, such as `quickstart`.")
@click.option("--json", "as_json", is_flag=True, help="Print the files that were written as JSON.")
def command(file: Path, example: str | None, as_json: bool) -> None:
    """Write a starter spec to FILE, and beside it the files that it names.

    Nothing is overwritten: data files that are there already are kept, and a spec that is there is an error.
    """
    if file.exists():
        raise SpeccError("the file exists, and `specc init` never overwrites", where=str(file),
                         hint="give another name, or remove it first")  # fmt: skip
    base = file.parent
    files = _starter(file.stem) if example is None else _example(example)
    spec = files.pop("")
    where = _schema_near(base)
    if where is None:
        files[SCHEMA_FILE] = published_path().read_text(encoding="utf-8")
        where = SCHEMA_FILE
    written = [_write(file, f"# yaml-language-server: $schema={where}\n# $schema: {where}\n#\n{spec}")]
    written += [_write(base / name, text) for name, text in files.items() if not (base / name).exists()]
    for path in written:
        click.echo(f"wrote {path}", err=True)
    click.echo(f"\nhint: `specc check {file}` checks it, `specc build {file}` builds it", err=True)
    if as_json:
        click.echo(json.dumps({"written": [str(path) for path in written]}, indent=2))


def _starter(stem: str) -> dict[str, str]:
    """Return the starter's texts by their paths; the spec itself has the empty path."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:96] or "my-speculator"
    rows = [json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in PROMPTS]
    spec = STARTER.read_text(encoding="utf-8").replace("NAME", _quoted(name))
    return {"": spec, "prompts/train.jsonl": "".join(rows)}


def _quoted(name: str) -> str:
    """Return a name as YAML: `2024` or `null` would not be a string without quotes."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", name) and len(name) > len("false") else f'"{name}"'


def _example(name: str) -> dict[str, str]:
    folder = _examples()
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise SpeccError(f"there is no example `{name}`",
                         hint=f"these are shipped: {', '.join(f'`{item}`' for item in known)}")  # fmt: skip
    path = folder / f"{name}.yaml"
    spec = path.read_text(encoding="utf-8")
    named = named_files(Document.parse(spec, path.name))
    return {"": _MODELINE.sub("", spec)} | {item: (folder / item).read_text(encoding="utf-8") for item in named}


def _examples() -> Path:
    """Return the folder of the examples: inside the package in a wheel, `specs/` in a checkout."""
    here = Path(__file__).resolve().parent
    shipped = here / "examples"
    return shipped if shipped.is_dir() else here.parents[5] / "specs"


def _schema_near(base: Path) -> str | None:
    """Return the path from `base` to a published schema in a folder above it, as a checkout has one."""
    start = base.resolve()
    for folder in (start, *start.parents):
        for found in (folder / SCHEMA_FILE, folder / "schema" / SCHEMA_FILE):
            if found.is_file():
                return Path(os.path.relpath(found, start)).as_posix()
    return None


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SpeccError(f"the file cannot be written: {reason}", where=str(path)) from error
    return path
