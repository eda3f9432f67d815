"""The starts of data files, from which a plan estimates their rows, whatever format they are of.

A row of JSON Lines, text, CSV or of a list of JSON takes as many bytes as those of the first 256 KiB, also in a
compressed file, whose start says how much it is compressed. A Parquet file states its rows in its footer
(https://parquet.apache.org/docs/file-format/metadata/), which is read here as far as that. Of `.zst` and Arrow files
nothing is known without pyarrow.
"""

from __future__ import annotations

import bz2
import csv
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.datafiles import Format

SAMPLE: Final = 1 << 18
"""Bytes of a data file's text that are looked into."""
PIECE: Final = 1 << 14
_MAGIC: Final = b"PAR1"
_LARGEST: Final = 64 << 20
"""Bytes of a footer that is read: of one of thousands of columns and row groups."""
_OPENED: Final[Mapping[str, Callable[[], Any]]] = {
    ".gz": lambda: zlib.decompressobj(31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a file, as JSON has them or as text, how many it has in all, and bytes of text of each."""

    first: list[Any]
    rows: float
    line: float | None = None


def sample(path: Path, form: Format) -> Sample | None:
    """Return the start of a data file, None for one that says nothing; raises `OSError` and `ValueError`."""
    if form.name == "parquet":
        return Sample([], parquet_rows(path))
    if form.name == "arrow" or (form.compression and form.compression not in _OPENED):
        return None
    text, size, whole = _start(path, form.compression)
    if form.name in ("csv", "tsv"):
        found = list(_records(text, "\t" if form.name == "tsv" else ","))[: None if whole else -1]
    elif form.name == "json" and text.lstrip()[:1] == b"[":
        found = list(_items(text))
    else:
        found = [(_value(line), len(line) + 1) for line in text.split(b"\n")[: None if whole else -1] if line.strip()]
    if not found:
        return Sample([], 0.0) if whole else None
    line = sum(length for _, length in found) / len(found)
    return Sample([row for row, _ in found], len(found) if whole else size / line, line)


def _start(path: Path, compression: str) -> tuple[bytes, float, bool]:
    """Return the start of a file's text, the bytes of all of it (about, if compressed), and whether that is all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not compression:
            return file.read(SAMPLE), size, size <= SAMPLE
        opened, text, taken = _OPENED[compression](), b"", 0
        try:
            while len(text) < SAMPLE and not opened.eof and (piece := file.read(PIECE)):
                text += opened.decompress(piece)
                taken += len(piece)
        except (zlib.error, lzma.LZMAError, EOFError) as error:
            raise ValueError(str(error)) from error
    whole = taken >= size
    return text, len(text) if whole else size * len(text) / taken, whole


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode(errors="replace")


def _records(text: bytes, delimiter: str) -> Iterator[tuple[dict[str, str], int]]:
    """Yield the records of a table, whose cells may have lines, each with about its bytes."""
    reader = csv.reader(io.StringIO(text.decode(errors="replace"), newline=""), delimiter=delimiter)
    try:
        header = next(reader, [])
        for cells in reader:
            if cells:
                yield dict(zip(header, cells, strict=False)), sum(len(cell.encode()) + 1 for cell in cells)
    except csv.Error:
        return  # a cell that goes on behind the sample


def _items(text: bytes) -> Iterator[tuple[Any, int]]:
    """Yield the items of the start of a list, each with its bytes."""
    decoder, said = json.JSONDecoder(), text.decode(errors="ignore")
    at = said.index("[") + 1
    while True:
        before = at
        at += len(said[at:]) - len(said[at:].lstrip(", \t\r\n"))
        try:
            item, at = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):
            return
        yield item, len(said[before:at].encode())


def parquet_rows(path: Path) -> int:
    """Return the rows that a Parquet file states; raises `ValueError` for a file that is none."""
    with path.open("rb") as file:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= min(end - 8, _LARGEST):
            raise ValueError("no Parquet file")
        file.seek(end - 8 - length)
        footer = file.read(length)
    try:
        return _Compact(footer).field(3)
    except (IndexError, RecursionError) as error:
        raise ValueError("a damaged footer") from error


class _Compact:
    """Thrift's compact protocol, as far as one integer of a struct is found by skipping what is before it.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def field(self, wanted: int) -> int:
        """Return the integer that is a struct's field of a number; raises `ValueError` if there is none."""
        for number, kind in self._fields():
            if number == wanted and kind in (4, 5, 6):
                return self._zigzag()
            self._skip(kind)
        raise ValueError(f"no field {wanted}")

    def _fields(self) -> Iterator[tuple[int, int]]:
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            yield number, header & 15

    def _skip(self, kind: int) -> None:
        if kind in (1, 2):  # a truth value, which the header holds
            return
        if kind == 3:
            self._at += 1
        elif kind in (4, 5, 6):
            self._varint()
        elif kind == 7:
            self._at += 8
        elif kind == 8:
            length = self._varint()
            self._at += length
        elif kind in (9, 10):
            header = self._byte()
            inner, count = header & 15, header >> 4
            for _ in range(self._varint() if count == 15 else count):
                self._skip(3 if inner in (1, 2) else inner)  # in a list a truth value is a byte
        elif kind == 12:
            for _, inner in self._fields():
                self._skip(inner)
        else:
            raise ValueError(f"a value of the kind {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
