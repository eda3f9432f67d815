"""The stage `conversations`: data files of any shape in, one canonical list of conversations out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

from specc.core.errors import SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.stage import Stage
from specc.datagen.allowance import Allowance, LeftOut
from specc.datagen.filters import WORDS, filters_of
from specc.datagen.formats import rows_of
from specc.datagen.images import Gallery
from specc.datagen.media import See, refuse
from specc.datagen.mix import mixed
from specc.datagen.rows import Message, Row, Said, ShardInfo, identity, shard_info, shard_name, write_rows
from specc.datagen.shapes import HINT, ShapeError, read_row
from specc.datagen.sources import Source, opened, sources_of

BAD: Final = "bad_rows.jsonl"
REPORT_EVERY: Final = 2000


@dataclass(slots=True)
class Tally:
    """Counts over all sources, and the bad rows of all of them."""

    bad: Allowance
    read: int = 0
    duplicates: int = 0
    train: int = 0
    validation: int = 0
    removed: Counter[str] = field(default_factory=Counter[str])

    def refuse(self, file: str, number: int, reason: str) -> None:
        """Count a bad row; raises `SpeccError` if it is one of very many, and more than there may be."""
        self.bad.add(LeftOut(file, number, reason))
        if self.bad.hopeless():
            raise self.bad.error(f"the first {self.read}")


class Candidate(NamedTuple):
    """A good conversation that is no duplicate and that no filter removed: where it was read, and its split."""

    identity: str
    validation: bool
    file: str
    number: int
    said: Said


def conversations(stage: Stage) -> None:
    """Write the conversations of all sources, without duplicates, split and sharded.

    The validation sources come first, in the order of the spec, then the others, one after another or mixed by their
    weights; rows keep their order. So a conversation that stands in both stays in validation alone, and rows appended
    to the last source, or to any of a mix, leave earlier shards as they were. Memory holds one shard, a part of a
    table, and 16 bytes of hash for each conversation. Images of verifiers that take them are in `images`, each once.

    Bad rows are left out and listed in `bad_rows.jsonl` up to `data.bad_rows`. Raises `SpeccError` if there are more,
    after the last row or after the first thousand of them, listing the first ones of all files together.
    """
    data = stage.params["data"]
    tally = Tally(Allowance("data.bad_rows", data.get("bad_rows", 0), "cannot be used", HINT))
    shards, pending = list[ShardInfo](), list[Row]()
    gallery = Gallery(stage, taken="images" in data)

    def flush() -> None:
        name = shard_name(len(shards), ".jsonl")
        write_rows(stage.output / name, pending)
        shards.append(shard_info(stage.output, name, len(pending)))
        pending.clear()

    for item in _candidates(stage, tally, gallery):
        if tally.bad.count and not tally.bad.allowed:
            continue  # to find the others
        row = tally.train + tally.validation
        tally.validation += item.validation
        tally.train += not item.validation
        pending.append({
            "id": item.identity, "row": row, "split": "validation" if item.validation else "train",
            "source": item.file, "line": item.number, **item.said,
            "messages": with_system(item.said["messages"], data["system_prompt"]),
        })  # fmt: skip
        if len(pending) == data["shard_rows"]:
            flush()
    if tally.bad.exceeded(tally.read):
        raise tally.bad.error(str(tally.read))
    if pending:
        flush()
    if not tally.train:
        removed = sum(tally.removed.values())
        filtered = f", and filters removed {removed}" if removed else ""
        raise SpeccError(
            "no conversation is left for training",
            hint=f"{tally.read} rows were read, and {tally.validation} of them are validation{filtered};"
            " give more data",
        )
    if not tally.validation:
        stage.warn("no conversation fell into the validation share: give more data or a larger share")
    if tally.duplicates:
        stage.note(f"{tally.duplicates} of {tally.read} rows are exact duplicates and were left out")
    for name, words in WORDS.items():
        if tally.removed[name]:
            stage.note(f"{tally.removed[name]} of {tally.read} rows are {words} and were left out")
    if tally.bad.count:
        stage.warn(tally.bad.warning(tally.read, BAD))
    index: dict[str, Any] = {
        "rows": tally.train + tally.validation,
        "read": tally.read,
        "duplicates": tally.duplicates,
        "train": tally.train,
        "validation": tally.validation,
        "shards": [asdict(shard) for shard in shards],
    }
    if "images" in data:
        index["images"] = {"files": gallery.files, "bytes": gallery.bytes}
    if "filters" in data:
        index["removed"] = {name: tally.removed[name] for name in WORDS}
    if tally.bad.allowed:
        index["bad"] = tally.bad.count
        tally.bad.write(stage.output / BAD)
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


def identified(row: object, see: See = refuse) -> tuple[str, Said]:
    """Return a row's identity (the sha256 of what it says and shows) and what it says; raises `ShapeError`."""
    if isinstance(row, ShapeError):
        raise row
    said = read_row(row, see)
    try:
        return identity(said), said
    except UnicodeEncodeError as error:
        raise ShapeError("half a surrogate pair (`\\ud800` to `\\udfff`) is no text") from error


def _candidates(stage: Stage, tally: Tally, gallery: Gallery) -> Iterator[Candidate]:
    """Yield the conversations of all sources in the order of the artifact; count the others in `tally`."""
    seen, sources = set[bytes](), sources_of(stage)
    whole = sum(source.rows for source in sources if source.rows) if all(source.rows for source in sources) else None
    with ExitStack() as stack:
        keep = stack.enter_context(filters_of(stage))

        def stream(source: Source) -> Iterator[Candidate]:
            found = _conversations(stage, source, tally, gallery, seen=seen, keep=keep, whole=whole)
            return stack.enter_context(closing(found))

        mix = [source for source in sources if source.weight is not None]
        for source in sources:
            if source.weight is None:
                yield from stream(source)
        if mix:
            before = tally.train + tally.validation
            ended = yield from mixed([stream(source) for source in mix], [source.weight or 0.0 for source in mix])
            count = tally.train + tally.validation - before
            if tally.bad.allowed or not tally.bad.count:
                stage.note(f"`{mix[ended].name}` ran out, and the mix ends there, with {count} rows")


def _conversations(
    stage: Stage,
    source: Source,
    tally: Tally,
    gallery: Gallery,
    *,
    seen: set[bytes],
    keep: Callable[[list[Message]], str | None],
    whole: int | None,
) -> Generator[Candidate]:
    """Yield the good rows of a source that are no duplicates and that no filter removes.

    `seen` are the hashes of all rows so far, `whole` are the rows that will be read of all sources if that is known.
    """
    taken, see = 0, gallery.reader(source)
    for file in source.files:
        if taken == source.rows:
            return
        name = source.called(file)
        with opened(stage, source, file) as path:
            for number, row in rows_of(path, source.format_name(file), source.columns):
                taken += 1
                tally.read += 1
                if tally.read % REPORT_EVERY == 0:
                    stage.progress(tally.read, whole, "rows", name)
                gallery.forget()
                try:
                    identity, said = identified(row, see)
                except ShapeError as error:
                    tally.refuse(name, number, str(error))
                else:
                    short = bytes.fromhex(identity[:32])
                    if short in seen:
                        tally.duplicates += 1
                    else:
                        seen.add(short)
                        # What is given as tokens has no text that could be judged.
                        if (filtered := keep(said["messages"]) if said["messages"] else None) is None:
                            gallery.keep(said["messages"])
                            validation = is_validation(identity, source.share)
                            yield Candidate(identity, validation, name, number, said)
                        else:
                            tally.removed[filtered] += 1
                if taken == source.rows:
                    break
