"""Rows between the text stages: canonical JSON lines in shards, and the index that names them.

The layout is `docs/reference/artifacts.md`: shard *k* holds the rows *kN … (k+1)N-1* of `conversations`, and a
stage that leaves a row out leaves a gap, so that a shard's bytes depend on nothing behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NotRequired, TypedDict

from specc.core.errors import Exit, SpeccError
from specc.core.files import sha256_file
from specc.core.images import Image

MARK: Final = "\ufffc"
"""What stands for an image in the text of a message that has images: Unicode's «object replacement character»."""


class Function(TypedDict):
    """A function's name and its arguments, which are the JSON text of an object."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call of a function, in OpenAI's form."""

    id: str
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """One turn; content is empty only beside calls, and as what a tool answers.

    `images` are those of a user's turn, one for each `MARK` in its content. `tool_call_id` and `name` say which call a
    tool answers. `finish` and `tokens` stand in answers of the verifier: `length` if `max_tokens` cut it off.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    images: NotRequired[list[Image]]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    finish: NotRequired[Literal["stop", "length"]]
    tokens: NotRequired[int]


class Said(TypedDict):
    """What a row of any shape says: messages, and the tools that were at hand; or tokens and their loss mask.

    `tools` is the JSON text of a list, for the order of its keys is what the verifier is shown, and canonical JSON
    has none. `input_ids` and `loss_mask` (0 and 1, as long) stand in rows without messages.
    """

    messages: list[Message]
    tools: NotRequired[str]
    input_ids: NotRequired[list[int]]
    loss_mask: NotRequired[list[int]]


class Row(Said):
    """One conversation and where it is from; `row` counts the rows of `conversations` from 0."""

    id: str
    row: int
    split: Literal["train", "validation"]
    source: str
    line: int


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard's entry in `index.json`: its path inside the artifact, its number of rows and its sha256."""

    file: str
    rows: int
    sha256: str


def identity(said: Said) -> str:
    """Return the sha256 that names a conversation: of its messages, or of all that a row says if there is more."""
    return hashlib.sha256(canonical_text(said if len(said) > 1 else said["messages"])).hexdigest()


def canonical_text(value: Said | list[Message]) -> bytes:
    """Return the RFC 8785 canonical JSON of rows and messages, twenty times as fast as `files.canonical`.

    With ASCII keys, strings and integers below 2^53 alone, Python's own encoder writes the same bytes: its
    escapes are those of RFC 8785, section 3.2.2.2. Raises `UnicodeEncodeError` for a lone surrogate.
    """
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def shard_name(number: int, suffix: str) -> str:
    """Return `shards/00017.jsonl` for `number` 17 and `suffix` `.jsonl`."""
    return f"shards/{number:05d}{suffix}"


def shard_info(folder: Path, file: str, rows: int) -> ShardInfo:
    """Describe a finished shard of the artifact in `folder`."""
    return ShardInfo(file, rows, sha256_file(folder / file))


def read_index(folder: Path) -> Mapping[str, Any]:
    """Return an artifact's `index.json`; raises `SpeccError` if there is none or it is none."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SpeccError("the artifact has no index that can be read", where=str(path), code=Exit.STAGE) from error
    return index


def read_shards(folder: Path) -> list[ShardInfo]:
    """Return the shards of an artifact of any sharded stage, in order."""
    return [ShardInfo(item["file"], item["rows"], item["sha256"]) for item in read_index(folder)["shards"]]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a shard, one line in memory at a time."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a shard as canonical JSON lines, a newline at each end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for row in rows:
            file.write(canonical_text(row) + b"\n")
