"""The digest cache: hashes of files that have not changed since they were hashed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from specc.core.files import sha256_file, tensors_digest, write_atomic

RACY: Final = 2_000_000_000
"""Nanoseconds. A file that changed so shortly before it was hashed could change once more within one tick of its
file system's clock (a second on some) and look the same; git has the same rule for its index."""
MOST_LINES: Final = 200_000
_LINE: Final = re.compile(r"([ft]) (\d+) (\d+) (\d+) (-?\d+) (-?\d+) ([0-9a-f]{64})")

Name = tuple[str, int, int, int, int, int]
"""Kind (`f` file, `t` tensors), device, inode, size, mtime_ns, ctime_ns."""


class DigestCache:
    """A text file of one hash a line, only ever appended to, so that processes may share it without a lock.

    A line that a crash cut short, or that two writers tore, does not match and is ignored. That the cache cannot be
    read or written costs time and nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[Name, str] | None = None

    def sha256(self, path: Path) -> str:
        """Return a file's sha256; raises `OSError` if it cannot be read."""
        return self._cached("f", path, sha256_file, sealed=False)

    def sealed_sha256(self, path: Path) -> str:
        """Return the sha256 of a file that nobody writes any more (mode 0444, its writer gone)."""
        return self._cached("f", path, sha256_file, sealed=True)

    def anew(self, path: Path) -> str:
        """Return the sha256 of such a file as its bytes are now, and know it by that from now on."""
        name, found = _name("f", path.stat(), sealed=True), sha256_file(path)
        if self._load().get(name) != found:
            self._append(name, found)
        return found

    def sealed_tensors(self, path: Path) -> str:
        """Return the digest of the tensors of such a file; raises `SpeccError` if it is no safetensors file."""
        return self._cached("t", path, tensors_digest, sealed=True)

    def _cached(self, kind: str, path: Path, hash_file: Callable[[Path], str], *, sealed: bool) -> str:
        name = _name(kind, path.stat(), sealed=sealed)
        known = self._load()
        if name in known:
            return known[name]
        found = hash_file(path)
        after = path.stat()
        settled = sealed or time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > RACY
        if settled and _name(kind, after, sealed=sealed) == name:
            self._append(name, found)
        return found

    def _load(self) -> dict[Name, str]:
        if self._known is None:
            lines: list[str] = []
            with suppress(OSError):
                lines = self._path.read_text(errors="replace").splitlines()
            if len(lines) > MOST_LINES:
                lines = lines[-MOST_LINES // 2 :]
                with suppress(OSError):
                    write_atomic(self._path, "\n".join(lines) + "\n")
            matches = (_LINE.fullmatch(line) for line in lines)
            self._known = {
                (m[1], int(m[2]), int(m[3]), int(m[4]), int(m[5]), int(m[6])): m[7] for m in matches if m is not None
            }
        return self._known

    def _append(self, name: Name, found: str) -> None:
        """Know a file by its hash; of several lines on one file the last one counts."""
        self._load()[name] = found
        line = " ".join([*map(str, name), found]) + "\n"
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode())


def _name(kind: str, stat: os.stat_result, *, sealed: bool) -> Name:
    """Return what a file is known by.

    A sealed file that has several names is a unit of work that artifacts share. One more name moves its
    ctime and not its bytes, so the ctime is left out (0) for those, and for those alone.
    """
    ctime = 0 if sealed and stat.st_nlink > 1 else stat.st_ctime_ns
    return kind, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, ctime
