"""Rows as they will be trained, for people: `specc show SPEC --tokens N`. No stage of a plan, and no artifact's maker.

What is shown is made by the code of the stages: `conversations`' reader, `tokens`' encoder.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from tokenizers import Tokenizer

from specc.core.errors import SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.gguf import read_header
from specc.core.stage import Stage
from specc.datagen.conversations import identified, with_system
from specc.datagen.formats import rows_of
from specc.datagen.gguf_tokenizer import write_tokenizer
from specc.datagen.images import Gallery
from specc.datagen.masks import REASONS, LeftOutError, Marked
from specc.datagen.rows import Row, read_rows, read_shards
from specc.datagen.shapes import ShapeError, shape_of
from specc.datagen.sources import Source, sources_of
from specc.datagen.talks import Talk
from specc.datagen.template import render
from specc.datagen.tokens import Encoded, Encoder
from specc.datagen.vision import images_of

SCANNED: Final = 200
"""Rows of each source that are counted, from its start."""
SHOWN: Final = 5
"""Rows of a source that cannot be read, and are listed; the others are counted."""


@dataclass(slots=True)
class Seen:
    """What was seen of a source: its rows of each shape, those that cannot be read, and what `tokens` will say."""

    source: str
    rows: int = 0
    shapes: Counter[str] = field(default_factory=Counter[str])
    bad: int = 0
    refused: list[str] = field(default_factory=list[str])
    tokens: int = 0
    trained_tokens: int = 0
    cut: int = 0
    context_turns: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, slots=True)
class Item:
    """A row as tokens, of which `length` are kept, or why it is left out; of some of those there are tokens too."""

    encoded: Encoded | None
    length: int = 0
    error: LeftOutError | None = None

    @property
    def trained(self) -> int:
        """How many of the kept tokens are trained."""
        return 0 if self.encoded is None else int(self.encoded.mask[: self.length].sum())

    @property
    def is_cut(self) -> bool:
        """Whether the row is longer than what is kept of it."""
        return self.encoded is not None and self.length < len(self.encoded.mask)

    def as_data(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Return the row's tokens and text as JSON's values."""
        return {
            "left_out": self.error and {"reason": self.error.reason, "why": self.error.detail},
            "tokens": self.length,
            "trained_tokens": self.trained,
            "cut": self.is_cut,
            "context_turns": self.encoded.context_turns if self.encoded else 0,
            "pieces": pieces(tokenizer, self.encoded, self.length) if self.encoded else [],
        }


def preview(stage: Stage) -> None:
    """Write `preview.json`: counts of each source, and some rows in pieces of text that are trained or not.

    Of the job's context, `rows` is how many to show, in turn from each source; `source` and `line` choose. The job has
    the files of `conversations` and those of the verifier's tokenizer, or the artifact of `verifier`; and that of
    `responses`, if it is built. Where it is to be built, what is shown is the prompt that will be answered.
    """
    wanted, responses = stage.job.context, "responses" in stage.job.inputs
    encoder = Encoder.load(_verifier(stage), stage.params)
    asks = stage.params["data"]["responses"]["from"] == "verifier" and not responses
    found = [_read(stage, name, source, wanted["line"]) for name, source in _files(stage).items()
             if wanted["source"] in (None, name)]  # fmt: skip
    if responses:
        answered = _answered(stage.input("responses"), {seen.source for seen, _ in found}, wanted["line"])
        found = [(seen, answered[seen.source]) for seen, _ in found]
    shown = list[list[dict[str, Any]]]()
    for seen, rows in found:
        items = (
            [_asked(encoder, row) for row in rows] if asks else [_kept(encoder, one) for one in encoder.encode(rows)]
        )
        for item in items:
            _count(seen, item)
        shown.append(
            [
                {"source": seen.source, "line": row["line"], **item.as_data(encoder.tokenizer)}
                for row, item in zip(rows[: wanted["rows"]], items, strict=False)
            ]
        )
    turns = [row for rank in zip_longest(*shown) for row in rank if row is not None]
    data = {"asked": asks, "sources": [_as_data(seen) for seen, _ in found], "rows": turns[: wanted["rows"]]}
    write_atomic(stage.output / "preview.json", pretty(data))


def pieces(tokenizer: Tokenizer, item: Encoded, length: int) -> list[dict[str, Any]]:
    """Return a row's text up to `length` tokens in pieces, each trained or not.

    The text is the chat template's, not the tokens put together again, so that no tokenizer hides a space; rows that
    bring their tokens have none.
    """
    mask, found = item.mask[:length], list[dict[str, Any]]()
    borders = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), length]
    for first, last in pairwise(borders):
        if item.text:
            start = int(item.offsets[first - 1][1]) if first else 0
            text = item.text[start : int(item.offsets[last - 1][1])]
        else:
            text = tokenizer.decode(item.ids[first:last].tolist(), skip_special_tokens=False)
        found.append({"trained": bool(mask[first]), "text": text})
    return found


def _verifier(stage: Stage) -> Path:
    """Return a folder with the verifier's tokenizer and template."""
    if "verifier" in stage.job.inputs:
        return stage.input("verifier")
    folder = stage.work / "verifier"
    folder.mkdir()
    for name, place in stage.job.files.items():
        if name.startswith("verifier/"):
            if stage.params["verifier"]["format"] == "gguf":
                write_tokenizer(read_header(Path(place)), folder, stage.params["verifier"]["config"])
            else:
                (folder / name.removeprefix("verifier/")).symlink_to(place)
    return folder


def _files(stage: Stage) -> dict[str, Source]:
    """Return the files of this machine that hold the data's rows, by their names, each with its source."""
    here = [source for source in sources_of(stage) if source.dataset is None and source.url is None]
    return {file: source for source in here for file in source.files}


def _read(stage: Stage, name: str, source: Source, line: int | None) -> tuple[Seen, list[Row]]:
    """Return the first rows of a file of a source, or the one on a line of it."""
    seen, rows = Seen(name), list[Row]()
    gallery = Gallery(stage, taken="image_token_id" in stage.params["verifier"]["config"])
    see = gallery.reader(source)
    found = rows_of(stage.file(name), name, source.columns)
    for number, row in ((at, row) for at, row in found if at == line) if line else islice(found, SCANNED):
        seen.rows += 1
        gallery.forget()
        try:
            identity, said = identified(row, see)
            shape = str(shape_of(cast("dict[str, Any]", row)))
        except ShapeError as error:
            seen.bad += 1
            if seen.bad <= SHOWN:
                seen.refused.append(f"line {number}: {error}")
            continue
        things = [*(["tools"] if "tools" in said else []), *(["images"] if images_of(said["messages"]) else [])]
        seen.shapes[" with ".join([shape, *([" and ".join(things)] if things else [])])] += 1
        said["messages"] = with_system(said["messages"], stage.params["data"]["system_prompt"])
        rows.append({"id": identity, "row": 0, "split": "train", "source": name, "line": number, **said})
        if line:
            break
    return seen, rows


def _answered(folder: Path, sources: set[str], line: int | None) -> dict[str, list[Row]]:
    """Return the first rows of each source that the verifier has answered."""
    found: dict[str, list[Row]] = {name: [] for name in sources}
    for shard in read_shards(folder):
        for row in read_rows(folder / shard.file):
            rows = found.get(row["source"])
            if rows is not None and len(rows) < SCANNED and line in (None, row["line"]):
                rows.append(row)
        if all(len(rows) >= (1 if line else SCANNED) for rows in found.values()):
            break
    return found


def _kept(encoder: Encoder, found: Encoded | LeftOutError) -> Item:
    if isinstance(found, LeftOutError):
        return Item(None, error=found)
    try:
        return Item(found, encoder.kept(found))
    except LeftOutError as error:
        return Item(found, min(len(found.mask), encoder.sequence_length), error)


def _asked(encoder: Encoder, row: Row) -> Item:
    """Return the first prompt of a row that the verifier will answer, all of it context."""
    talk, masker = Talk.of(row), encoder.masker
    if not talk.asked:
        return Item(None, error=LeftOutError("no_answer", "its tokens are given, and nothing asks for an answer"))
    try:
        asked = talk.next_prompt()
        text = render(masker.template, asked, tools=row.get("tools"), add_generation_prompt=True, date=masker.date)
    except SpeccError as error:
        return Item(None, error=LeftOutError("template_refused", error.message))
    item, length = encoder.encode_text(Marked(text, ()), asked), encoder.sequence_length
    if isinstance(item, LeftOutError):
        return Item(None, error=item)
    fits = len(item.mask) < length
    error = None if fits else LeftOutError("too_long", f"the prompt has {len(item.mask)} tokens")
    return Item(item, min(len(item.mask), length), error)


def _count(seen: Seen, item: Item) -> None:
    if item.error is not None:
        seen.left_out[item.error.reason] += 1
        return
    seen.tokens += item.length
    seen.trained_tokens += item.trained
    seen.cut += item.is_cut
    seen.context_turns += item.encoded.context_turns if item.encoded else 0


def _as_data(seen: Seen) -> dict[str, Any]:
    left_out = {reason: seen.left_out[reason] for reason in REASONS if seen.left_out[reason]}
    return {**asdict(seen), "shapes": dict(seen.shapes), "left_out": left_out}
