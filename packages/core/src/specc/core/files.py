"""Canonical JSON, digests and tensor headers: how bytes get their names."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import rfc8785

from specc.core.errors import Exit, SpeccError

CHUNK: Final = 1 << 20
MAX_HEADER: Final = 100_000_000
"""Bytes a safetensors header may have, the format's own limit."""
MAX_NUMBER: Final = 1 << 63
MAX_DIMENSIONS: Final = 32
DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element of each dtype that the safetensors format knows."""


def canonical(value: object) -> bytes:
    """Return the RFC 8785 canonical JSON of `value`; raises `SpeccError` for what JSON cannot say exactly."""
    try:
        return rfc8785.dumps(value)  # pyright: ignore[reportArgumentType]
    except (ValueError, RecursionError) as error:  # the library's own errors and Python's on lone surrogates
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
            raise SpeccError("a symbolic link cannot be part of an artifact", where=str(entry), code=Exit.STAGE)
        if entry.is_dir():
            yield from walk(entry)
        elif entry.is_file():
            yield entry
        else:
            raise SpeccError("only plain files can be part of an artifact", where=str(entry), code=Exit.STAGE)


def entries(folder: Path) -> list[FileEntry]:
    """Return the files of `folder` with sizes and hashes, sorted by posix path."""
    found = [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path)) for path in walk(folder)
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
    is believed, every tensor has the bytes that its shape and dtype ask for, and together they fill the file
    without a gap or an overlap (format: https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise _malformed("its header does not fit in it", path)
        try:
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise _malformed("its header cannot be read", path) from error
    if not isinstance(header, dict):
        raise _malformed("its header is not an object", path)
    items: dict[str, object] = header
    found = [_tensor(name, item, path) for name, item in items.items() if name != "__metadata__"]
    end = 0
    for tensor in sorted(found, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise _malformed(f"tensor `{tensor.name}` leaves a gap or overlaps another", path)
        end = tensor.end
    if end != size - 8 - length:
        raise _malformed(f"its tensors end at byte {end} of {size - 8 - length}", path)
    return sorted(found, key=lambda tensor: tensor.name)


def _tensor(name: str, item: Any, path: Path) -> TensorHeader:
    """Read one entry of a header, believing nothing: `json` gives any type and any size of number."""
    try:
        dtype, shape, (start, end) = item["dtype"], item["shape"], item["data_offsets"]
        numbers = [*shape, start, end]
        good = dtype in DTYPE_BITS and all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers)
        good = good and len(shape) <= MAX_DIMENSIONS
    except (TypeError, KeyError, ValueError) as error:
        raise _malformed(f"the entry of tensor `{name[:80]}` cannot be read", path) from error
    if not good:
        raise _malformed(f"tensor `{name[:80]}` has an unknown dtype or a number that is none", path)
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - start) * 8:
        raise _malformed(f"tensor `{name[:80]}` has other bytes than its shape and dtype ask for", path)
    return TensorHeader(name, dtype, tuple(shape), start, end)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _malformed(what: str, path: Path) -> SpeccError:
    return SpeccError(f"not a safetensors file: {what}", where=str(path))


def tensors_start(file: BinaryIO) -> int:
    """Return the byte of a safetensors file that offsets in its header count from; the header was checked before."""
    file.seek(0)
    return 8 + struct.unpack("<Q", file.read(8))[0]


def tensors_digest(path: Path) -> str:
    """Return a digest over (name, dtype, shape, bytes) of every tensor, so that a header is not taken for a weight."""
    headers = tensor_headers(path)
    with path.open("rb") as file:
        base = tensors_start(file)
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


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, sealed or not; one that is gone, or goes meanwhile, is fine.

    Of a link to a folder the link alone is removed.
    """
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        with suppress(FileNotFoundError):
            Path(folder).chmod(0o700)  # names are removed from a folder, so it is the folder that must be writable
    while path.exists():  # more than once only when another process removes it, too
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


@contextmanager
def new_folder(to: Path) -> Generator[Path]:
    """Yield an empty folder of the name of `to`, which takes its place when the block ends well.

    Raises `SpeccError` if something is there, or if nothing can be written there.
    """
    to = to.absolute()
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise SpeccError("there is something already, and nothing is written over", where=str(to),
                         hint="name a new directory or an empty one", code=Exit.USAGE)  # fmt: skip
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{to.name}.", suffix=".tmp", dir=to.parent))
    except OSError as error:
        raise storage_error(error, to.parent, "name another folder") from error
    folder = beside / to.name
    try:
        folder.mkdir()
        yield folder
        for parent, _, names in os.walk(folder, topdown=False):
            for name in names:
                sync(Path(parent) / name)
            sync(Path(parent))
        folder.rename(to)
        sync(to.parent)
    except OSError as error:
        raise storage_error(error, to.parent, "name another folder") from error
    finally:
        remove_tree(beside)


def copy_files(source: Path, target: Path) -> None:
    """Copy a folder's files into another one, as files that their owner may change."""
    for path in walk(source):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""How a system says that there is no room: on the disk, in a quota, under the limit for one file."""


def storage_error(error: OSError, folder: Path, other: str = "name another folder in `SPECC_STORE`") -> SpeccError:
    """Return what the system refused below `folder` in words: a full disk, a read-only place, no permission.

    `other` is what a user can do instead of mending it.
    """
    disk, number = disk_of(folder), error.errno or 0
    space = f"free some space on `{disk}` (`df -h {disk}`, `df -i {disk}`), or {other}"
    owner, local = f"ask its owner for write access, or {other}", f"{other} on a local disk"
    known = {
        errno.ENOSPC: ("the disk is full", space),
        errno.EDQUOT: ("the disk quota is used up", space),
        errno.EFBIG: ("a file would be larger than this process may write", "raise the limit that `ulimit -f` shows"),
        errno.EROFS: ("this file system is read-only", f"make `{disk}` writable, or {other}"),
        errno.EACCES: ("no permission to write here", owner),
        errno.EPERM: ("no permission to write here", owner),
        errno.ENOLCK: ("this file system has no locks", local),
        errno.EOPNOTSUPP: ("this file system has no locks", local),
    }
    unknown = f"the system refused a write: {error.strerror or error}", f"look at what is there, or {other}"
    message, hint = known.get(number, unknown)
    return SpeccError(message, where=str(error.filename or folder), hint=hint, code=Exit.STAGE)


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Turn what the system refuses below a folder of the store into a `SpeccError` (exit code 3)."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, folder) from error


def disk_of(path: Path) -> Path:
    """Return where the file system is mounted that holds `path`, or would hold it."""
    place = path.absolute()
    while not os.path.exists(place):  # noqa: PTH110 - which does not raise where nothing may be looked up
        place = place.parent
    device = place.stat().st_dev
    while place != place.parent and place.parent.stat().st_dev == device:
        place = place.parent
    return place


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name, or copy it where the file system has no hard links or does not allow this one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        with source.open("rb") as reader, atomic(target) as temporary, temporary.open("wb") as writer:
            while chunk := reader.read(CHUNK):
                writer.write(chunk)


def merged(below: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return one tree on top of another: mappings in both are merged, of everything else in both `own` is taken."""
    found = dict(below)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value  # pyright: ignore[reportUnknownArgumentType]
    return found


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
