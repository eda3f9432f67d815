"""Write the generated part of `docs/reference`: `python tools/docs.py [--check]`.

`language.md` and `lock.md` are made from the published schemas, `errors.md` from the explanations, `cli.md` from the
commands. The pages are committed; `--check` writes nothing and names those that are not what they should be.

Exit code: 0 current (or written), 1 a page is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import yaml

from specc.core.algorithms import ALGORITHMS
from specc.core.cli.main import COMMANDS, group
from specc.core.compiler import compile_spec
from specc.core.errors import Exit
from specc.core.language.explanations import pages
from specc.core.language.schema import Schema, build_schema
from specc.core.language.text import printable
from specc.core.language.words import types_of, words
from specc.core.lock.schema import build_lock_schema

ROOT: Final = Path(__file__).resolve().parent.parent
REFERENCE: Final = ROOT / "docs" / "reference"
VALUES: Final = "locked.values"
"""Where a lock has the values of the language."""
DEFAULT: Final = " Default: "
"""What begins the last sentence of a description where the schema itself holds no default."""
EXAMPLES: Final = ("specs/quickstart.yaml", "tests/specs/good/*.yaml")
"""Specs that a section is shown from: the first one that has it."""
VERIFIER: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 384, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip
TEMPLATE: Final = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
"""Configuration and chat template of a verifier, which the derived values of a spec are asked for."""
CODES: Final[Mapping[Exit, str]] = {
    Exit.OK: "fine",
    Exit.INPUT: "the input is wrong (a spec, a stale lock), or a check is not met",
    Exit.USAGE: "the command line is wrong",
    Exit.STAGE: "a stage failed",
    Exit.DIFFERENCE: "a build or a verification came to other bytes than it must",
    Exit.WORK: "`--detailed-exitcode` was given, and there is work to do",
    Exit.INTERRUPTED: "interrupted; the same command goes on from there",
    Exit.TERMINATED: "ended from outside; the same command goes on from there",
}


LANGUAGE: Final = """\
# The language

A spec is one YAML 1.2 document. Every field stands below under its dotted path, as `specc explain SPEC FIELD` and
`specc schema --field FIELD` take it; `data.sources.file` is the field `file` of each item of `data.sources`. An unknown
field is an error. Paths are relative to the file that they stand in. Examples are from specs that pass `specc check`.
"""
LOCK: Final = """\
# The lock

`<spec>.lock.json`, beside the spec: JSON in UTF-8, sorted and indented, with no time, host, user or absolute path in
it. It pins what a rebuild takes from outside or from defaults, and notes what builds found.
[Rebuild from a lock](../how-to/rebuild-from-a-lock.md) says how it is used, and `specc schema --lock` prints its JSON
Schema. Where a lock has every value of a resolved spec, this page shows what [the language](language.md) does not:
facts, and the sha256 of every file.
"""
ERRORS: Final = """\
# Errors

What `specc check` says of a spec has an id, in its `--json` and SARIF too, and `specc explain ID` prints what stands
here. Each example is a whole spec; what specc says of it stands below.
"""
CLI: Final = """\
# The command line

Data goes to standard output, words to standard error. Every command has `--help`. Colour is for a terminal, and not
where `NO_COLOR` is set.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a schema by its dotted path; `member` is that of a tagged union which alone has it, as `tag: name`."""

    path: str
    rule: Schema
    required: bool
    member: str | None = None


def escape(text: str) -> str:
    """Return prose as Markdown in which nothing has a meaning but code between backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([\\*_\[\]<>|#~])", r"\\\1", part) for part in parts)


def anchor(heading: str) -> str:
    """Return a heading's fragment, which Python-Markdown and forges make alike: letters, digits, `_` and `-`."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def linked(names: Iterable[str]) -> str:
    """Return names as links to their headings on the same page."""
    return ", ".join(f"[`{name}`](#{anchor(name)})" for name in names)


def fenced(kind: str, text: str) -> str:
    """Return text as a block of code, whatever is in it."""
    fence = "`" * (3 + max(map(len, re.findall(r"`{3,}", text)), default=0))
    shown = "\n".join(printable(line, 200) for line in text.rstrip("\n").splitlines())
    return f"{fence}{kind}\n{shown}\n{fence}"


def name_of(condition: Schema) -> str:
    """Return the name of a tagged union's member as a spec has it, `tag: name`."""
    ((tag, rule),) = condition["if"]["properties"].items()
    return f"{tag}: {rule['const']}"


def walk(node: Schema, prefix: str = "", member: str | None = None) -> Iterator[Field]:
    """Yield the fields of a mapping or of a list's items, each before those inside it.

    Of a tagged union come first the tag and what all members have, then each member's own.
    """
    whole: Schema = node.get("else", {})  # what is required of a spec that extends no other
    for name, rule in node.get("properties", {}).items():
        if "." not in name:  # of a matrix: the path of a field, and none itself
            path = f"{prefix}.{name}" if prefix else name
            yield Field(path, rule, name in {*node.get("required", ()), *whole.get("required", ())}, member)
            yield from walk({**rule, **whole.get("properties", {}).get(name, {})}, path, member)
    for inner in (*node.get("anyOf", ()), *([node["items"]] if "items" in node else ())):
        yield from walk(inner, prefix, member)
    members: dict[str, list[Field]] = {}
    for condition in node.get("allOf", ()):
        tags = {f"{prefix}.{tag}" for tag in condition["if"]["properties"]}
        members[name_of(condition)] = [field for field in walk(condition["then"], prefix) if field.path not in tags]
    first, *others = members.values() or [[]]
    common = [field for field in first if others and all(field in other for other in others)]
    yield from common
    some: list[tuple[Field, list[str]]] = []  # what several have is said once
    for name, own in members.items():
        for field in own:
            same = next((names for other, names in some if other == field), None)
            if same is not None:
                same.append(name)
            elif field not in common:
                some.append((field, [name]))
    for field, (tag, *others) in some:
        names = ", ".join([tag, *(other.partition(": ")[2] for other in others)])
        yield replace(field, member=f"{names}; {field.member}" if field.member else names)


def example(section: str) -> str | None:
    """Return how a spec that passes `check` writes a section, None if no spec of ours has it."""
    for path in (path for pattern in EXAMPLES for path in sorted(ROOT.glob(pattern))):
        lines = path.read_text(encoding="utf-8").splitlines()
        root = yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)
        assert isinstance(root, yaml.MappingNode), path
        starts = [(key.value, key.start_mark.line) for key, _ in root.value]
        for (name, start), end in zip(starts, [*(line for _, line in starts[1:]), len(lines)], strict=True):
            if name == section:
                shown = "\n".join(lines[start:end])
                return re.sub(r"(\n(#.*)?)+$", "", shown)  # comments at the margin introduce what follows
    return None


def derived() -> dict[str, str]:
    """Return what the values are derived from that a spec may leave out, by their dotted paths."""
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), dict[str, str]()
        texts = {"config.json": json.dumps(VERIFIER), "tokenizer.json": "{}", "chat_template.jinja": TEMPLATE,
                 "model.safetensors": "", "data.jsonl": ""}  # fmt: skip
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        for algorithm, row in ALGORITHMS.items():
            if row.stitched:  # of a part that this verifier lacks
                continue
            spec = folder / f"{algorithm}.yaml"
            spec.write_text("version: 1\nname: derived\nverifier: {model: ./}\ndata: {sources: [{file: data.jsonl}]}\n"
                            f"draft: {{algorithm: {algorithm}}}\n", encoding="utf-8")  # fmt: skip
            for path, origin in compile_spec(spec).resolved.origins.items():
                if match := re.match(r"derived from (\S+)", origin):
                    found[path] = match[1]
    return found


def description(field: Field) -> str:
    """Return what a field is, without the words on its default."""
    return escape(field.rule["description"].partition(DEFAULT)[0])


def facts(field: Field, source: str | None) -> str:
    """Return in one line what a field takes, whether it must be there, and what stands in for it."""
    rule, (_, _, told) = field.rule, field.rule["description"].partition(DEFAULT)
    said = [f"Takes {escape(words(rule))}"]
    if field.member:
        said.append(f"only with `{field.member}`")
    if field.required:
        said.append("required")
    if "default" in rule:
        value = rule["default"]
        said.append(f"default `{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`")
    if told:
        said.append(f"default: {escape(told.rstrip('.'))}")
    if source:
        said.append(f"derived from `{source}`")
    return " · ".join(said)


def headings(found: Sequence[Field]) -> list[str]:
    """Return the heading of each field; where several members of a union have one of the same path it names its own."""
    paths = [field.path for field in found]
    return [f"`{field.path}`" + (f" ({field.member})" if field.member and paths.count(field.path) > 1 else "")
            for field in found]  # fmt: skip


def language() -> Iterator[str]:
    """Yield the paragraphs of the language's page."""
    schema = build_schema()
    found, sources = list(walk(schema)), derived()
    yield LANGUAGE
    version = schema["properties"]["version"]["const"]
    yield f"Version {version} of the language has these sections: {linked(schema['properties'])}."
    for field, heading in zip(found, headings(found), strict=True):
        section = "." not in field.path
        yield ("## " if section else "### ") + heading
        yield description(field)
        yield facts(field, sources.get(field.path))
        if members := field.rule.get("allOf", ()):
            yield "\n".join(f"- `{name_of(item)}`: {escape(item['then']['description'])}" for item in members)
        if section and (shown := example(field.path)):
            yield fenced("yaml", shown)
        paths = [name for name in field.rule.get("properties", ()) if "." in name]
        if sections := dict.fromkeys(path.partition(".")[0] for path in paths):
            yield f"Every other key is the dotted path of a field, with a list of its values: of {linked(sections)}."


def lock() -> Iterator[str]:
    """Yield the paragraphs of the lock's page: what it has beside the values of the language, mapping by mapping."""
    written = {f"{VALUES}.{field.path}" for field in walk(build_schema())}
    known = {field.path: field for field in walk(build_lock_schema())}
    groups: dict[str, list[Field]] = {}
    for path, field in known.items():
        if path not in written:
            groups.setdefault(path.rpartition(".")[0], []).append(field)
    yield LOCK
    for parent, inner in sorted(groups.items()):
        if parent:
            yield f"## `{parent}`"
            yield description(known[parent])
        lines: list[str] = []
        for field in inner:
            name = f"`{field.path.removeprefix(parent).removeprefix('.')}`"
            shown = f"[{name}](#{anchor(field.path)})" if field.path in groups else name
            null = " or `null`" if "null" in types_of(field.rule) else ""
            absent = "" if field.required else ", or absent"
            lines.append(f"- {shown} ({escape(words(field.rule))}{null}{absent}): {description(field)}")
        yield "\n".join(lines)


def errors() -> Iterator[str]:
    """Yield the paragraphs of the page of errors."""
    yield ERRORS
    for page in pages().values():
        yield f"## {page.id}"
        yield escape(page.sentence)
        yield escape(f"{page.why} {page.instead}")
        yield fenced("yaml", page.example)
        yield fenced("text", page.message)


def cli() -> Iterator[str]:
    """Yield the paragraphs of the command line's page."""
    yield CLI
    yield "\n".join(f"- {linked([f'specc {name}'])}: {escape(said)}" for name, said in COMMANDS.items())
    parent = click.Context(group, info_name="specc")
    for name in COMMANDS:
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent)
        yield f"## `specc {name}`"
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield fenced("text", usage)
        yield from (escape(" ".join(part.split())) for part in (command.help or "").split("\n\n"))
        records = [record for param in command.params if (record := param.get_help_record(context)) and record[1]]
        if records:
            yield "\n".join(f"- `{option}`: {escape(said)}" for option, said in records)
        more = click.HelpFormatter(width=90)
        command.format_epilog(context, more)
        if text := more.getvalue().strip("\n"):
            yield fenced("text", text)
    yield "## Exit codes"
    yield "\n".join(["| code | means |", "|---|---|", *(f"| {int(code)} | {CODES[code]} |" for code in Exit)])


PAGES: Final[Mapping[str, Callable[[], Iterator[str]]]] = {
    "language.md": language, "errors.md": errors, "cli.md": cli, "lock.md": lock,
}  # fmt: skip


def render(page: Callable[[], Iterator[str]]) -> str:
    """Return a page as it is committed."""
    title, _, text = "\n\n".join(part.strip("\n") for part in page()).partition("\n")
    return f"{title}\n\n<!-- made by tools/docs.py; `make docs` writes it anew -->\n{text}\n"


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="docs.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--to", type=Path, default=REFERENCE)
    args = parser.parse_args()
    stale = 0
    for name, page in PAGES.items():
        path, text = args.to / name, render(page)
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"error: {path}: this page differs from what specc says of itself", file=sys.stderr)
            stale = 1
    if stale:
        print("\nhint: `make docs` writes it anew", file=sys.stderr)
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
