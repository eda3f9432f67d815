"""The header of a GGUF file: its metadata and where its tensors are, believing no length that it states.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.errors import SpeccError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_HEADER: Final = 128 << 20
"""Bytes that a header may have; a vocabulary of 262,144 tokens takes about 15 MB."""
MAX_ITEMS: Final = 4_000_000
"""Values and names that a header may hold in all, which bounds the memory that they take."""
MAX_DIMENSIONS: Final = 4
MAX_NESTING: Final = 3
ALIGNMENT: Final = "general.alignment"

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format's numbers of its scalar types, as `struct` calls them."""
_STRING: Final = 8
_ARRAY: Final = 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's entry: `shape` is outermost first, as in torch; `kind` is ggml's number of its type.

    `start` is where its bytes begin in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata and the tensors of a GGUF file, both in the file's order."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


class _Cursor:
    """Reads values one after another. Every length is held against the bytes and items that are left."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._end = min(len(data), MAX_HEADER)
        self._items = 0
        self.at = 0

    def skip(self, size: int) -> int:
        """Step over `size` bytes and return where they begin."""
        start = self.at
        if size > self._end - start:
            raise ValueError("it is cut short, or its header is too long")
        self.at = start + size
        return start

    def number(self, kind: str) -> Any:
        return struct.unpack_from("<" + kind, self._data, self.skip(struct.calcsize(kind)))[0]

    def count(self) -> int:
        """Read how many items follow: each takes a byte at least, and all together are bounded."""
        count: int = self.number("Q")
        self._items += count
        if count > self._end - self.at or self._items > MAX_ITEMS:
            raise ValueError(f"its header announces {count} more items")
        return count

    def text(self) -> str:
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        """Read `count` strings. A vocabulary has 100,000 of them, so this loop is the header's whole cost."""
        data, at, end, unpack = self._data, self.at, self._end, _LENGTH.unpack_from
        found: list[str] = []
        for _ in range(count):
            if at + 8 > end:
                raise ValueError("it is cut short, or its header is too long")
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > end:
                raise ValueError("it is cut short, or its header is too long")
            found.append(data[start:at].decode())
        self.at = at
        return found

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth == MAX_NESTING:
            raise ValueError(f"its header holds a value of an unknown type {kind}")
        inner, count = self.number("I"), self.count()
        if inner == _STRING:
            return self.texts(count)
        if inner in _SCALARS:
            form = struct.Struct(f"<{count}{_SCALARS[inner]}")
            return list(form.unpack_from(self._data, self.skip(form.size)))
        return [self.value(inner, depth + 1) for _ in range(count)]

    def named(self, count: int, read: Callable[[], Any]) -> dict[str, Any]:
        """Read `count` pairs of a name and what `read` reads behind it."""
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise ValueError(f"`{name[:80]}` stands twice in its header")
            found[name] = read()
        return found


_LENGTH: Final = struct.Struct("<Q")


def read_header(path: Path) -> GgufHeader:
    """Read a GGUF file's header; raises `SpeccError` for a file that is none, is cut short or lies about lengths."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(data), len(data))
    except (ValueError, OSError) as error:
        raise SpeccError(
            f"the GGUF file cannot be read: {error}",
            where=path.name,
            hint="download it again, or name a folder with safetensors",
        ) from error


def _read(cursor: _Cursor, size: int) -> GgufHeader:
    if size < len(MAGIC) or bytes(cursor.number("B") for _ in MAGIC) != MAGIC:
        raise ValueError("it does not begin with `GGUF`")
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}, and versions 2 and 3 are read")
    tensors, entries = cursor.count(), cursor.count()
    metadata = cursor.named(entries, lambda: cursor.value(cursor.number("I")))

    def tensor() -> tuple[tuple[int, ...], int, int]:
        dimensions = cursor.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"a tensor in it has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        return shape[::-1], cursor.number("I"), cursor.number("Q")

    found = cursor.named(tensors, tensor)
    alignment = metadata.get(ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise ValueError(f"`{ALIGNMENT}` is {alignment!r}")
    base = -(-cursor.at // alignment) * alignment
    if beyond := next((name for name, (_, _, offset) in found.items() if base + offset >= size), None):
        raise ValueError(f"it is cut short: tensor `{beyond[:80]}` begins behind its end")
    return GgufHeader(
        metadata,
        tuple(GgufTensor(name, shape, kind, base + offset) for name, (shape, kind, offset) in found.items()),
    )
