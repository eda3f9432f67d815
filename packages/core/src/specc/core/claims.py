"""Who makes what, among any number of processes: a byte of one file stands for each piece of work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from specc.core.files import writing

DIGITS: Final = 15
"""Hexadecimal digits of a key that say which byte stands for it: as many as a file's offset has room for."""


class Claims:
    """The claims of this process on pieces of work that others may take as well.

    A claim is a record lock (fcntl(2)) on a byte of an empty file: it lasts as long as this process at most, however
    that ends, and holds between machines where their file system does. Only one object of a process may stand for a
    file, since closing the file anywhere in the process gives up all claims.
    """

    def __init__(self, path: Path) -> None:
        """Open the file `path`, which is made if it is not there; raises `SpeccError` if that is refused."""
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @contextmanager
    def claim(self, key: str, *, wait: bool = False) -> Generator[bool]:
        """Hold what a hexadecimal `key` stands for and yield whether we do: without `wait`, another may hold it."""
        place = int(key[:DIGITS], 16)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):  # fcntl(2) allows either
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, place)
