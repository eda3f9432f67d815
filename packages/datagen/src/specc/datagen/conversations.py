"""The stage `conversations`: data files of any shape in, one canonical list of conversations out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.stage import Stage
from specc.datagen.rows import Message, Row, Said, ShardInfo, identity, shard_info, shard_name, write_rows
from specc.datagen.shapes import HINT, ShapeError, read_row

MAX_LINE: Final = 64 << 20
"""Bytes a line may have, so that a file that is no JSON lines file cannot fill the memory."""
SHOWN: Final = 10
"""Bad rows that an error lists; the others are counted."""
REPORT_EVERY: Final = 2000


@dataclass(frozen=True, slots=True)
class Source:
    """A data file: its logical name, its place, its sha256, how many rows to take, and its validation share."""

    name: str
    path: Path
    sha256: str
    rows: int | None
    share: float


@dataclass(slots=True)
class Tally:
    """Counts over all sources, and the first bad rows."""

    read: int = 0
    duplicates: int = 0
    train: int = 0
    validation: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list[str])

    def refuse(self, where: str, reason: str) -> None:
        """Count a bad row, and remember it if it is among the first."""
        self.bad += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append(f"{where}: {reason}")


def conversations(stage: Stage) -> None:
    """Write the conversations of all sources, without duplicates, split and sharded.

    The validation sources come first, in the order of the spec, then the others; lines keep their order. So a
    conversation that stands in both stays in validation alone, and rows appended to the last source leave
    earlier shards as they were. Memory holds one shard and 16 bytes of hash for each conversation.

    Raises `SpeccError` after the last line, listing the first bad rows of all files together.
    """
    data = stage.params["data"]
    sources = _sources(stage)
    tally, shards, pending = Tally(), list[ShardInfo](), list[Row]()

    def flush() -> None:
        name = shard_name(len(shards), ".jsonl")
        write_rows(stage.output / name, pending)
        shards.append(shard_info(stage.output, name, len(pending)))
        pending.clear()

    for row in _rows(stage, sources, tally):
        if tally.bad:
            continue
        pending.append({**row, "messages": with_system(row["messages"], data["system_prompt"])})
        if len(pending) == data["shard_rows"]:
            flush()
    if tally.bad:
        raise _bad_rows(tally)
    if pending:
        flush()
    if not tally.train:
        raise SpeccError(
            "no conversation is left for training",
            hint=f"{tally.read} rows were read, and {tally.validation} of them are validation; give more data",
        )
    if not tally.validation:
        stage.warn("no conversation fell into the validation share: give more data or a larger share")
    if tally.duplicates:
        stage.note(f"{tally.duplicates} of {tally.read} rows are exact duplicates and were left out")
    index = {
        "rows": tally.train + tally.validation,
        "read": tally.read,
        "duplicates": tally.duplicates,
        "train": tally.train,
        "validation": tally.validation,
        "shards": [asdict(shard) for shard in shards],
    }
    write_atomic(stage.output / "index.json", pretty(index))


def with_system(messages: list[Message], prompt: str | None) -> list[Message]:
    """Return `messages` with `prompt` put first, unless there are none, they have a system turn or it is none."""
    if prompt is None or not messages or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": prompt}, *messages]


def is_validation(identity: str, share: float) -> bool:
    """Decide a conversation's split from its own hash alone, so that adding or removing others moves nothing."""
    drawn = hashlib.sha256(("validation" + identity).encode()).hexdigest()[:16]
    return int(drawn, 16) / 2**64 < share


def read_lines(path: Path, feed: Callable[[bytes], None]) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line) of a file's lines that are not blank, and `feed` all bytes of it to a hash.

    The line is None where it is longer than `MAX_LINE`; no more than that is ever in memory.
    """
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            feed(line)
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                    feed(line)
                yield number, None
            elif line.strip():
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def parse(line: bytes | None) -> tuple[str, Said]:
    """Return a line's identity (the sha256 of its messages) and what it says; raises `ShapeError`."""
    if line is None:
        raise ShapeError(f"the line is longer than {MAX_LINE >> 20} MiB")
    try:
        said = read_row(json.loads(line.decode()))
        return identity(said), said
    except ShapeError:
        raise
    except UnicodeDecodeError as error:
        raise ShapeError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    except UnicodeEncodeError as error:
        raise ShapeError("half a surrogate pair (`\\ud800` to `\\udfff`) is no text") from error
    except json.JSONDecodeError as error:
        raise ShapeError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ShapeError("not JSON that can be read: nested too deeply or with too long a number") from error


def _sources(stage: Stage) -> list[Source]:
    data = stage.params["data"]

    def source(item: Mapping[str, Any], share: float) -> Source:
        return Source(item["file"], stage.file(item["file"]), item["sha256"], item.get("rows"), share)

    validation = data["validation"]
    return [
        *(source(item, 1.0) for item in validation["sources"]),
        *(source(item, validation["share"] or 0.0) for item in data["sources"]),
    ]


def _rows(stage: Stage, sources: list[Source], tally: Tally) -> Iterator[Row]:
    """Yield the good rows that are no duplicates, numbered; count the others in `tally`."""
    seen = set[bytes]()
    size, done = sum(source.path.stat().st_size for source in sources), 0
    for source in sources:
        state, taken = hashlib.sha256(), 0
        for number, line in read_lines(source.path, state.update):
            done += len(line or b"")
            if taken == source.rows:
                continue  # the rest is read for its hash alone
            taken += 1
            tally.read += 1
            if tally.read % REPORT_EVERY == 0:
                stage.progress(done / 1e6, size / 1e6, "MB", source.name)
            try:
                name, said = parse(line)
            except ShapeError as error:
                tally.refuse(f"{source.name}:{number}", str(error))
                continue
            short = bytes.fromhex(name[:32])
            if short in seen:
                tally.duplicates += 1
                continue
            seen.add(short)
            validation = is_validation(name, source.share)
            row = tally.train + tally.validation
            tally.validation += validation
            tally.train += not validation
            yield {"id": name, "row": row, "split": "validation" if validation else "train",
                   "source": source.name, "line": number, **said}  # fmt: skip
        if state.hexdigest() != source.sha256:
            raise SpeccError(
                f"`{source.name}` is not the file that the lock names",
                hint="`specc lock SPEC` pins it as it is now",
                code=Exit.STAGE,
            )


def _bad_rows(tally: Tally) -> SpeccError:
    lines = "".join(f"\n  {reason}" for reason in tally.reasons)
    more = f"\n  and {tally.bad - len(tally.reasons)} more" if tally.bad > len(tally.reasons) else ""
    rows = "1 row" if tally.bad == 1 else f"{tally.bad} rows"
    return SpeccError(f"{rows} of {tally.read} cannot be used{lines}{more}", hint=HINT)
