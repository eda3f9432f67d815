"""`specc init`: a spec to start from, with what it needs for its first check."""

from __future__ import annotations

import json
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from specc.core.cli.options import columns, print_json, words
from specc.core.errors import Exit, SpeccError
from specc.core.language.extends import chain
from specc.core.language.paths import named_files
from specc.core.language.schema import FILE as SCHEMA_FILE
from specc.core.language.schema import published_path
from specc.core.language.text import printable
from specc.core.language.words import listed
from specc.core.references import PACKAGE, joined
from specc.core.shipped import shipped

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
NAME: Final = Path("my-speculator.yaml")
"""What a hint calls a spec that has no name yet."""
LIST: Final = ""
"""What `--from` stands for without a name: all of them."""
FIRST: Final = "quickstart"
"""Example that is listed before the others."""
_MODELINE: Final = re.compile(r"\A(#[^\n]*\$schema[^\n]*\n)+(#\n)?")


@dataclass(frozen=True, slots=True)
class Example:
    """A shipped spec: its name, its text without the modelines, and what its first comment says it is."""

    name: str
    text: str
    about: str


@click.command("init")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--from", "example", is_flag=False, flag_value=LIST, metavar="[NAME]",
              help="Copy a shipped example, such as `quickstart`; without NAME, list them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the files that were written, or the examples, as JSON.")
def command(file: Path | None, example: str | None, as_json: bool) -> None:
    """Write a starter spec to FILE, and beside it the files that it names.

    Nothing is asked and nothing is overwritten: data files that are there already are kept, and a spec that is there is
    an error.
    """
    if example == LIST:
        _list(file or NAME, as_json)
        return
    chosen = None if example is None else _example(example)
    if file is None:
        options = "" if chosen is None else f"--from {chosen.name} "
        raise SpeccError("the spec to write has no name", code=Exit.USAGE,
                         hint=f"`specc init {options}{NAME}` writes one")  # fmt: skip
    if file.exists():
        raise SpeccError("the file exists, and `specc init` never overwrites", where=str(file),
                         hint="give another name, or remove it first")  # fmt: skip
    base = file.parent
    spec, files = _starter(file.stem) if chosen is None else (chosen.text, _named(chosen))
    where = _schema_near(base)
    if where is None:
        files[SCHEMA_FILE] = published_path().read_text(encoding="utf-8")
        where = SCHEMA_FILE
    written = [_write(file, f"# yaml-language-server: $schema={where}\n# $schema: {where}\n#\n{spec}")]
    written += [_write(base / name, text) for name, text in files.items() if not (base / name).exists()]
    for path in written:
        words(f"wrote {path}")
    words(f"\nhint: `specc check {file}` checks it, `specc build {file}` builds it")
    if as_json:
        print_json({"written": [str(path) for path in written]})


def _list(file: Path, as_json: bool) -> None:
    """Print the shipped examples, and how to copy one to `file`."""
    found = _examples()
    if as_json:
        print_json({"examples": [{"name": item.name, "about": item.about} for item in found]})
        return
    click.echo("\n".join(columns([(item.name, item.about) for item in found])))
    words(f"\nhint: `specc init --from {found[0].name} {file}` copies one")


def _starter(stem: str) -> tuple[str, dict[str, str]]:
    """Return the starter's text, and those of the files that it names by their paths."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:96] or "my-speculator"
    rows = [json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in PROMPTS]
    spec = STARTER.read_text(encoding="utf-8").replace("NAME", _quoted(name))
    return spec, {"prompts/train.jsonl": "".join(rows)}


def _quoted(name: str) -> str:
    """Return a name as YAML: `2024` or `null` would not be a string without quotes."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", name) and len(name) > len("false") else f'"{name}"'


def _example(name: str) -> Example:
    known = {item.name: item for item in _examples()}
    if name not in known:
        raise SpeccError(f"there is no example `{printable(name)}`", hint=f"these are shipped: {listed(list(known))}")
    return known[name]


def _named(example: Example) -> dict[str, str]:
    """Return the texts of the files that an example names, by their paths, and of what it goes on from."""

    def read(name: str) -> str:
        return (_folder() / name).read_text(encoding="utf-8")

    first, *bases = chain(f"{example.name}.yaml", read).items()
    inner = [joined(posixpath.dirname(name), item) for name, document in bases for item in named_files(document)]
    wanted = dict.fromkeys([*named_files(first[1]), *(name for name, _ in bases), *inner])
    return {name: read(name) for name in wanted if not name.startswith(PACKAGE)}


def _examples() -> list[Example]:
    found: list[Example] = []
    for path in sorted(_folder().glob("*.yaml"), key=lambda path: (path.stem != FIRST, path.stem)):
        text = _MODELINE.sub("", path.read_text(encoding="utf-8"))
        found.append(Example(path.stem, text, text.partition("\n")[0].lstrip("# ").rstrip(".")))
    return found


def _folder() -> Path:
    """Return the folder of the examples: inside the package in a wheel, `specs/` in a checkout."""
    return shipped(__file__, "examples", "specs")


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
