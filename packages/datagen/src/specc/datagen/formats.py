"""Data files of every format that is read, as rows: one at a time, and none that cannot be read stops the others.

| format | a row is | its number |
|---|---|---|
| JSON Lines | a line | of the line |
| JSON | an item of the list, or a line if the file is no list | of the item |
| CSV, TSV | a record; the first one names the columns; an empty cell is no value | of its first line |
| text | a line, as `prompt` | of the line |
| Parquet, Arrow | a row of the table | of the row |
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, cast

from specc.core.datafiles import Format, format_of, local_format
from specc.core.errors import Exit, SpeccError
from specc.datagen.shapes import ShapeError

MAX_LINE: Final = 64 << 20
"""Bytes a row may have, so that a file that is none of its format cannot fill the memory."""
BATCH: Final = 64
"""Rows of a table that are made Python's at a time."""
CHUNK: Final = 1 << 20
_BYTES: Final = ("bytes", "image", "images")
"""Columns, and fields of columns, whose bytes are those of images."""

Numbered = Iterator[tuple[int, object]]
"""Rows with their numbers from 1; a row that cannot be read is a `ShapeError` that says why."""


def rows_of(path: Path, name: str, columns: Mapping[str, str] | None = None) -> Numbered:
    """Yield the rows of the file `path`, whose format the suffix of `name` says.

    With `columns` a row is what they name (`{"prompt": "question"}` takes `question` for `prompt`) and nothing else.
    Raises `SpeccError` for a file that is not of its format, after the rows before the damage, and for a table that
    lacks a column.
    """
    form = local_format(name)
    wanted = tuple(dict.fromkeys(columns.values())) if columns else None
    try:
        for number, row in _READERS[form.name](path, form, wanted):
            yield number, _named(row, columns) if columns and isinstance(row, dict) else row
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        OSError,
        ValueError,
    ) as error:  # pyarrow's are ValueErrors and OSErrors
        first = next(iter(str(error).splitlines()), type(error).__name__)
        what = f"{form.name} with {form.compression}" if form.compression else form.name
        raise SpeccError(f"`{name}` cannot be read as {what}: {first[:200]}",
                         hint="its suffix says how it is read; rename it if that is wrong") from error  # fmt: skip


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line) of a file's lines that are not blank.

    The line is None where it is longer than `MAX_LINE`; no more than that is ever in memory.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, None
        elif line.strip():
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def parse(line: bytes | None) -> object:
    """Return what a line of JSON holds; raises `ShapeError`."""
    try:
        return json.loads(_text(line))
    except ShapeError:
        raise
    except json.JSONDecodeError as error:
        raise ShapeError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise ShapeError("not JSON that can be read: nested too deeply or with too long a number") from error


def _text(line: bytes | None) -> str:
    if line is None:
        raise ShapeError(f"the line is longer than {MAX_LINE >> 20} MiB")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ShapeError(f"not UTF-8 at byte {error.start + 1} of the line") from error


def _named(row: dict[str, Any], columns: Mapping[str, str]) -> object:
    """Return what the named columns of a row hold, under the names of what they hold."""
    found = {name: row[column] for name, column in columns.items() if row.get(column) is not None}
    if found:
        return found
    has = ", ".join(f"`{str(key)[:40]}`" for key in list(row)[:6]) or "none"
    return ShapeError(f"nothing in {', '.join(f'`{column}`' for column in columns.values())}; its columns are {has}")


def _tried(read: Callable[[bytes | None], object], line: bytes | None) -> object:
    try:
        return read(line)
    except ShapeError as error:
        return error


def _opened(path: Path, form: Format) -> IO[bytes]:
    match form.compression:
        case ".gz":
            return cast("IO[bytes]", gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return cast("IO[bytes]", io.BufferedReader(_arrow().input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


def _json_lines(path: Path, form: Format, _: tuple[str, ...] | None) -> Numbered:
    with _opened(path, form) as file:
        for number, line in read_lines(file):
            yield number, _tried(parse, line)


def _prompts(path: Path, form: Format, _: tuple[str, ...] | None) -> Numbered:
    def prompt(line: bytes | None) -> object:
        return {"prompt": _text(line).strip()}

    with _opened(path, form) as file:
        for number, line in read_lines(file):
            yield number, _tried(prompt, line)


def _json(path: Path, form: Format, wanted: tuple[str, ...] | None) -> Numbered:
    with _opened(path, form) as file:
        start = file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
        if start[:1] == b"[":
            yield from _items(start, file)
            return
    yield from _json_lines(path, form, wanted)


def _items(start: bytes, file: IO[bytes]) -> Numbered:
    """Yield the items of a JSON list, of which no more than one and what was read ahead are in memory."""
    decoder, pieces = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, at, ended = pieces.decode(start), 1, False

    def more() -> None:
        nonlocal text, at, ended
        data = file.read(max(CHUNK, len(text) - at))
        ended = not data
        text, at = text[at:] + pieces.decode(data, final=ended), 0

    def skip() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text) or ended:
                return text[at : at + 1]
            more()

    for number in count(1):
        mark = skip()
        if mark == "]":
            return
        if number > 1:
            if mark != ",":
                raise ValueError(f"a comma or `]` was expected behind item {number - 1}")
            at += 1
            skip()
        while True:
            try:
                item, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                if ended or len(text) - at > MAX_LINE:
                    raise ValueError(f"{error.msg} in item {number}") from error
            except RecursionError as error:
                raise ValueError(f"item {number} is nested too deeply") from error
            else:
                if end < len(text) or ended:  # at the end of what was read, a number may go on
                    break
            more()
        at = end
        yield number, item


def _separated(path: Path, form: Format, wanted: tuple[str, ...] | None) -> Numbered:
    csv.field_size_limit(MAX_LINE)
    with _opened(path, form) as file:
        reader = csv.reader(_decoded(file), delimiter="\t" if form.name == "tsv" else ",", strict=True)
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header):
            raise ValueError("two columns have one name")
        _all_there(wanted, header)
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, ShapeError(f"not CSV: {error}")
                continue
            if cells:
                yield first, _record(header, cells)


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """Yield a file's lines as text, blank ones too, with bytes that are not UTF-8 as lone surrogates."""
    first = True
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"a line is longer than {MAX_LINE >> 20} MiB")
        yield (line.removeprefix(codecs.BOM_UTF8) if first else line).decode(errors="surrogateescape")
        first = False


def _record(header: list[str], cells: list[str]) -> object:
    if len(cells) > len(header):
        return ShapeError(f"{len(cells)} cells, and there are {len(header)} columns")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return ShapeError("not UTF-8")
    return {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()}


def _parquet(path: Path, _: Format, wanted: tuple[str, ...] | None) -> Numbered:
    pyarrow = _arrow()
    import pyarrow.parquet as parquet  # noqa: PLR0402 - `pyarrow` is a local name here

    table = parquet.ParquetFile(pyarrow.memory_map(str(path)))
    _all_there(wanted, table.schema_arrow.names)
    batches = table.iter_batches(batch_size=BATCH, columns=list(wanted) if wanted else None)
    yield from enumerate((row for batch in batches for row in _plain_rows(batch, wanted)), 1)


def _arrow_table(path: Path, _: Format, wanted: tuple[str, ...] | None) -> Numbered:
    pyarrow = _arrow()
    source = pyarrow.memory_map(str(path))
    if source.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        source.seek(0)
        reader = batches = pyarrow.ipc.open_stream(source)
    _all_there(wanted, reader.schema.names)
    parts = ((batch.select(list(wanted)) if wanted else batch).slice(at, BATCH)
             for batch in batches for at in range(0, batch.num_rows, BATCH))  # fmt: skip
    yield from enumerate((row for part in parts for row in _plain_rows(part, wanted)), 1)


def _plain_rows(batch: Any, wanted: tuple[str, ...] | None) -> Iterator[object]:
    images = frozenset((*_BYTES, *(wanted or ())))
    for row in batch.to_pylist():
        yield _plain(row, images)


def _plain(value: Any, images: frozenset[str], name: str = "") -> Any:
    """Return a value of a table as JSON has it; what JSON has not is none of a conversation.

    Bytes are kept where they may be an image's: in fields with one of the names in `images`.
    """
    if isinstance(value, dict):
        return {key: _plain(item, images, key) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item, images, name) for item in cast("list[Any]", value)]
    return value if isinstance(value, str | int | float) or (isinstance(value, bytes) and name in images) else None


def _all_there(wanted: tuple[str, ...] | None, there: list[str]) -> None:
    """Raise `ValueError` if a table lacks a column that is asked for."""
    if missing := next((name for name in wanted or () if name not in there), None):
        known = ", ".join(f"`{name[:40]}`" for name in there[:12])
        raise ValueError(f"it has no column `{missing}`; its columns are {known}")


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.ipc  # pyright: ignore[reportUnusedImport] - makes `pa.ipc`
    except ImportError as error:
        raise SpeccError("Parquet, Arrow and `.zst` files need pyarrow, which is not installed",
                         hint="`pip install 'specc[data]'` brings it", code=Exit.STAGE) from error  # fmt: skip
    return pa


_READERS: Final[Mapping[str, Callable[[Path, Format, tuple[str, ...] | None], Numbered]]] = {
    "jsonl": _json_lines,
    "json": _json,
    "csv": _separated,
    "tsv": _separated,
    "txt": _prompts,
    "parquet": _parquet,
    "arrow": _arrow_table,
}

__all__ = ["MAX_LINE", "format_of", "parse", "read_lines", "rows_of"]
