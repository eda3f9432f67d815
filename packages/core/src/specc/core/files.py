"""Canonical JSON, digests and tensor headers: how bytes get their names."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rfc8785

from specc.core.errors import SpeccError

CHUNK: Final = 1 << 20
MAX_HEADER: Final = 100_000_000
"""Bytes a safetensors header may have, the format's own limit."""


def canonical(value: object) -> bytes:
    """Return the RFC 8785 canonical JSON of `value`; raises `SpeccError` for what JSON cannot say exactly."""
    try:
        return rfc8785.dumps(value)  # pyright: ignore[reportArgumentType]
    except rfc8785.CanonicalizationError as error:
        raise SpeccError(f"a value cannot be written as canonical JSON: {error}") from error


def pretty(value: object) -> str:
    """Return sorted, indented JSON with a newline at its end: the form of every JSON file a person reads."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def sha256(data: bytes) -> str:
    """Return the hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: object) -> str:
    """Return the hexadecimal sha256 of the canonical JSON of `value`."""
    return sha256(canonical(value))


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of a file's bytes, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an artifact: its posix path inside, its size in bytes and its sha256."""

    path: str
    size: int
    sha256: str


def walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder` in sorted order; raises `SpeccError` at anything else.

    A symlink, a socket or a device inside an artifact would make its digest depend on something outside.
    """
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.is_symlink():
            raise SpeccError("a symbolic link cannot be part of an artifact", where=str(entry))
        if entry.is_dir():
            yield from walk(entry)
        elif entry.is_file():
            yield entry
        else:
            raise SpeccError("only plain files can be part of an artifact", where=str(entry))


def entries(folder: Path) -> list[FileEntry]:
    """Return the files of `folder` with sizes and hashes, sorted by posix path."""
    found = [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))
        for path in walk(folder)
    ]
    return sorted(found, key=lambda entry: entry.path)


def directory_digest(files: Iterable[FileEntry]) -> str:
    """Return the digest of a directory: sha256 over the canonical JSON of its sorted (path, size, sha256)."""
    return digest_of(sorted([file.path, file.size, file.sha256] for file in files))


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor's entry in a safetensors header; `start` and `end` are byte offsets after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def tensor_headers(path: Path) -> list[TensorHeader]:
    """Return the tensors of a safetensors file, sorted by name, from its header alone.

    Raises `SpeccError` if the header does not describe the file exactly: sizes are checked before anything
    is believed (format: https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise SpeccError("not a safetensors file: its header does not fit in it", where=str(path))
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            found = [
                TensorHeader(
                    name, str(item["dtype"]), tuple(int(n) for n in item["shape"]), *item["data_offsets"]
                )
                for name, item in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpeccError("not a safetensors file: its header cannot be read", where=str(path)) from error
    body = size - 8 - length
    for tensor in found:
        if not 0 <= tensor.start <= tensor.end <= body:
            raise SpeccError(f"tensor `{tensor.name}` lies outside the file", where=str(path))
    return sorted(found, key=lambda tensor: tensor.name)


def tensors_digest(path: Path) -> str:
    """Return a digest over (name, dtype, shape, bytes) of every tensor, so that a header is not taken for a weight."""
    headers = tensor_headers(path)
    with path.open("rb") as file:
        base = 8 + struct.unpack("<Q", file.read(8))[0]
        rows: list[list[object]] = []
        for tensor in headers:
            file.seek(base + tensor.start)
            state, left = hashlib.sha256(), tensor.end - tensor.start
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise SpeccError(f"tensor `{tensor.name}` is cut short", where=str(path))
                state.update(chunk)
                left -= len(chunk)
            rows.append([tensor.name, tensor.dtype, list(tensor.shape), state.hexdigest()])
    return digest_of(rows)


@contextmanager
def atomic(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path` that takes its name, whole and synced, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one."""
    with atomic(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name, or copy it where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        with atomic(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
            while chunk := reader.read(CHUNK):
                writer.write(chunk)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"a.b": value}` for a tree of mappings; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, path)  # pyright: ignore[reportUnknownArgumentType]
        else:
            flat[path] = value
    return flat
