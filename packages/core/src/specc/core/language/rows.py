"""The first row of a data file: whether a stage will be able to read it, before anything else is built."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from specc.core.errors import Position, SpeccError
from specc.core.language.text import Source, printable
from specc.core.language.words import listed

if TYPE_CHECKING:
    from specc.core.language.document import Document
    from specc.core.language.node import KeyPath

SAMPLE: Final = 1 << 16
"""Bytes of a data file that are read."""
SHAPES: Final = ("messages", "conversations", "instruction", "prompt", "query", "question", "text", "input_ids")
"""Keys that tell a row's shape; `specc.datagen.shapes` has their readers, and a test holds the two equal."""
ANSWERS: Final = ("completion", "response", "output", "answers", "input_ids")
ASSISTANT: Final = ("assistant", "gpt", "bot", "model")
SHOWN: Final = 80
"""Letters of a row that an error shows."""
ROW: Final = '`{"messages": [{"role": "user", "content": "…"}]}`'


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a data file; `number` counts from 1."""

    file: Path
    number: int
    data: bytes

    def error(self, message: str, identity: str, hint: str) -> SpeccError:
        """Return an error at the start of the line, which is shown as far as it fits."""
        text = self.data.decode(errors="replace").rstrip("\r")
        shown = Source("", text if len(text) <= SHOWN else f"{text[:SHOWN]}…").line(0)
        where = Position(str(self.file), self.number, 1, max(1, len(shown)))
        return SpeccError(message, where=where, excerpt=shown, hint=hint, id=identity)


def row_error(document: Document, path: KeyPath, file: Path) -> SpeccError | None:
    """Return what is wrong with the first row of `file`, which the document names at `path`.

    Where the data's own answers are used, every row of a small file is looked at: one of them must have an answer.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(SAMPLE)
    except OSError as error:
        return document.error(f"the file cannot be read: {(error.strerror or str(error)).lower()}", path, id="E0214")
    if path[0] == "evaluate" and file.suffix == ".parquet":
        return None  # its reader is an engine's
    lines = start.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    whole = len(start) < SAMPLE
    line = next((Line(file, number, data) for number, data in enumerate(lines, 1) if data.strip()), None)
    if line is None:
        return document.error("the file has no rows", path, id="E0501", hint=f"a row is a line such as {ROW}")
    if line.data.lstrip()[:1] == b"{" and line.number == len(lines) and not whole:
        return None  # a row that is longer than what was read
    found = _read(line.data)
    if not isinstance(found, dict):
        return line.error(found, "E0502", _hint(line.data))
    row: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    if path[0] == "evaluate" and _has_turns(row):
        return None
    if not row.keys() & set(SHAPES):
        known = f"with the keys {listed([printable(name) for name in list(row)[:6]])}" if row else "without keys"
        return line.error(f"a row of no known shape, {known}", "E0503", f"a row is such as {ROW}")
    if path[0] == "evaluate":
        if isinstance(row.get("messages"), list) or isinstance(row.get("prompt"), str):
            return None
        shape = next(name for name in SHAPES if name in row)
        return line.error(f"the evaluation reads `messages`, `turns` or a text as `prompt`, and not `{shape}`",
                      "E0504", f"write prompts as {ROW}")  # fmt: skip
    if whole and _uses_answers(document) and not any(_has_answer(_read(data)) for data in lines):
        return document.error("no row of the file has an answer, and `data.responses.from` is `data`", path, id="E0505",
                              hint="use `from: verifier`, or data with turns of the assistant")  # fmt: skip
    return None


def _read(line: bytes) -> dict[str, Any] | str:
    """Return a row, or why the line is none."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return f"not a JSON object on one line: {error.msg.lower()}"
    except (ValueError, RecursionError):
        return "JSON that is nested too deeply, or has too long a number"
    return row if isinstance(row, dict) else "a row is a JSON object, and this is none"


def _hint(line: bytes) -> str:
    if line.lstrip()[:1] == b"[":
        return "`jq -c '.[]' data.json > data.jsonl` writes an array's items a line each"
    return f"each line is one JSON object, such as {ROW}"


def _uses_answers(document: Document) -> bool:
    """Tell whether the document, which may not be valid, trains on the data's own answers."""
    data = document.data.get("data")
    responses = data.get("responses") if isinstance(data, dict) else None
    return isinstance(responses, dict) and responses.get("from") == "data"


def _has_turns(row: dict[str, Any]) -> bool:
    """Tell whether a row has its prompts as a list of texts, as those of MT-Bench do."""
    turns: Any = row.get("turns", row.get("prompt"))
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], str)


def _has_answer(row: dict[str, Any] | str) -> bool:
    if isinstance(row, str):
        return False
    turns: Any = next((row[name] for name in SHAPES if isinstance(row.get(name), list)), [])
    said = (turn.get("role", turn.get("from")) for turn in turns if isinstance(turn, dict))
    return any(row.get(name) is not None for name in ANSWERS) or any(role in ASSISTANT for role in said)
