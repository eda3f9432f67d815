"""`specc show SPEC --tokens N`: rows of the spec's own data, as they will be trained.

A process of the data stages' package makes them, with the verifier's own tokenizer and chat template: nothing of that
is imported here, and nothing is built or kept.
"""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click

from specc.core.cli.options import colour, print_json
from specc.core.compiler import Compiled, compile_spec
from specc.core.contracts import Failure, Input, StageJob, load_event
from specc.core.errors import Exit, SpeccError
from specc.core.execute.environment import environment
from specc.core.execute.machine import installed
from specc.core.language.text import printable
from specc.core.plan import decide
from specc.core.resolve import missing_file

NEEDED: Final = ("tokenizers", "numpy", "safetensors", "jinja2")
"""Distributions that the process imports."""
TEXTS: Final = (".json", ".jinja", ".gguf")
"""Endings of those of a verifier's files in which its tokenizer may be."""


def show_rows(
    path: Path, *, only: Collection[str], tokens: int | None, source: str | None, row: int | None, json: bool
) -> int:
    """Print as many rows of a spec's data as `tokens` says, or one `row` of a `source`, and what else was seen."""
    compiled = compile_spec(path, only=only)
    found = _preview(compiled, {"rows": tokens or 1, "source": _known(compiled, source, row), "line": row})
    if json:
        print_json(found)
        return Exit.OK
    lines = list[str]()
    for seen in found["sources"] if row is None or not found["rows"] else ():
        lines.append(f"{_clean(seen['source'])}: {_seen(seen, row)}")
        counted = _counted(seen, asked=found["asked"], length=compiled.values["data"]["sequence_length"])
        lines += [f"  {text}" for text in counted]
    for item in found["rows"]:
        lines += ["", f"{_clean(item['source'])}:{item['line']}  {_row(item, asked=found['asked'])}"]
        text = _text(item["pieces"], colour(sys.stdout.isatty())).removesuffix("\n")
        lines += ["  " * bool(line) + line for line in text.split("\n") if item["pieces"]]
    click.echo("\n".join(lines).removeprefix("\n"))
    if found["asked"]:
        click.echo(
            "\nthe verifier answers these prompts, and what it says is trained"
            f"\n\nhint: `specc build {path} --stage responses` makes the answers, which are shown here then"
        )
    return Exit.OK


def _known(compiled: Compiled, source: str | None, line: int | None) -> str | None:
    """Return the name of a source as the spec has it; raises `SpeccError` if there is none."""
    names = _files(compiled)
    if source is None:
        return names[0] if line is not None else None
    if source not in names:
        raise SpeccError(f"the spec has no data source `{printable(source)}`", code=Exit.USAGE,
                         hint=f"its sources are {', '.join(f'`{name}`' for name in names)}")  # fmt: skip
    return source


def _files(compiled: Compiled) -> list[str]:
    """Return the names of the spec's data files."""
    return list(next(stage.row.files for stage in compiled.plan.stages if stage.name == "conversations"))


def _preview(compiled: Compiled, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `specc.datagen.preview` says."""
    missing = next((name for name, version in installed(NEEDED).items() if version is None), None)
    if missing:
        raise SpeccError(f"rows are tokenised with `{missing}`, and it is not installed", code=Exit.STAGE,
                         hint="`pip install 'specc[cpu]'` brings the engines")  # fmt: skip
    values, store = compiled.values, compiled.store
    built = {found.stage.name: found.digest for found in decide(compiled.plan, store) if found.digest}
    inputs = {
        name: Input(path=str(store.path(built[name])), digest=built[name])
        for name in ("verifier", "responses")
        if name in built
    }
    names = _files(compiled)
    if "verifier" not in built:
        if values["verifier"]["revision"]:
            raise SpeccError("the verifier's tokenizer is not on this machine", code=Exit.STAGE,
                             hint=f"`specc build {compiled.path} --stage verifier` fetches it")  # fmt: skip
        names += [f"verifier/{name}" for name in values["verifier"]["files"] if name.endswith(TEXTS)]
    for name in names:
        if name not in compiled.resolved.files:
            raise missing_file(name, values)
    with TemporaryDirectory(prefix="specc-") as folder:
        work = Path(folder)
        for name in ("home", "tmp", "output"):
            (work / name).mkdir()
        job = StageJob(
            stage="preview",
            version=1,
            key="",
            params={"data": values["data"], "verifier": values["verifier"], "date": values["date"]},
            facets={},
            inputs=inputs,
            files={name: str(compiled.resolved.files[name].resolve()) for name in names},
            output=str(work / "output"),
            work=folder,
            units=folder,
            context=wanted,
        )
        (work / "JOB.json").write_text(job.dump())
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "specc.datagen", str(work / "JOB.json")],
            cwd=work, env=environment({}, work, 0), stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        for said in ended.stdout.decode(errors="replace").splitlines():
            if isinstance(event := load_event(said), Failure):
                raise SpeccError(event.message, where=event.where, hint=event.hint, code=Exit(event.code))
        if ended.returncode:
            last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise SpeccError(f"the rows could not be made: {_clean(last)}", code=Exit.STAGE)
        return dict(jsonlib.loads((work / "output" / "preview.json").read_bytes()))


def _seen(seen: Mapping[str, Any], row: int | None) -> str:
    if not seen["rows"]:
        return "no rows" if row is None else f"no row on line {row}"
    shapes: Mapping[str, int] = seen["shapes"]
    listed = f"of the shapes {', '.join(f'`{name}` {count}' for name, count in shapes.items())}"
    if len(shapes) == 1 and not seen["bad"]:
        listed = f"of the shape `{next(iter(shapes))}`"
    return ", ".join(
        [f"the first {_many(seen['rows'], 'row')}" if row is None else f"line {row}", *[listed] * bool(shapes)]
    )


def _counted(seen: Mapping[str, Any], *, asked: bool, length: int) -> list[str]:
    """Return what was counted of a source, a sentence a line."""
    trained = "of prompts" if asked else _share(seen)
    lines = [f"{_many(seen['tokens'], 'token')} {trained}"] if seen["tokens"] else []
    if seen["cut"]:
        lines.append(f"{_many(seen['cut'], 'row')} cut at `data.sequence_length` ({length})")
    if seen["context_turns"]:
        lines.append(
            f"{_many(seen['context_turns'], 'answer')} not trained, which the template shows otherwise than it was said"
        )
    if seen["left_out"]:
        reasons = ", ".join(f"`{reason}` {count}" for reason, count in seen["left_out"].items())
        lines.append(f"{_many(sum(seen['left_out'].values()), 'row')} left out: {reasons}")
    if seen["bad"]:
        more = seen["bad"] - len(seen["refused"])
        lines.append(f"{_many(seen['bad'], 'row')} that cannot be read")
        lines += [f"  {_clean(text)}" for text in seen["refused"]] + [f"  and {more} more"] * bool(more)
    return lines


def _row(row: Mapping[str, Any], *, asked: bool) -> str:
    if (why := row["left_out"]) is not None:
        detail = f" ({_clean(why['why'])})" if why["why"] != why["reason"] else ""
        return f"left out: `{why['reason']}`{detail}"
    cut = ", cut" if row["cut"] else ""
    return f"{_many(row['tokens'], 'token')} {'of a prompt' if asked else _share(row)}{cut}"


def _share(counts: Mapping[str, Any]) -> str:
    share = counts["trained_tokens"] / max(1, counts["tokens"])
    return f"of which {counts['trained_tokens']:,} are trained ({share:.0%})".replace("%", " %")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _text(pieces: Sequence[Mapping[str, Any]], terminal: bool) -> str:
    """Return a row's text with what is trained in colour, or between brackets where there is none.

    A colour ends with its line, so that a line that is cut out keeps its own.
    """
    shown = list[str]()
    for piece in pieces:
        lines = [_clean(line) for line in piece["text"].split("\n")]
        if piece["trained"] and terminal:
            lines = [click.style(line, fg="green") if line else line for line in lines]
        text = "\n".join(lines)
        shown.append(f"⟦{text}⟧" if piece["trained"] and not terminal else text)
    return "".join(shown)


def _clean(text: str) -> str:
    """Return a line of a user's text without what would move a terminal's cursor or colours."""
    spaced = text.expandtabs(4)
    return printable(spaced, len(spaced))
