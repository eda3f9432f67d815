"""Small, read-only and separate file systems for tests: real ones, mounted by root or in a user's own namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

PAGE: Final = 4096
"""Bytes that a file takes at least on a tmpfs."""


@contextmanager
def mounted(
    folder: Path, *, size: str = "1m", source: Path | None = None, options: str = "", in_place: bool = False
) -> Generator[Path]:
    """Mount a tmpfs of a size at `folder`, or `source` for a second time; `options` are of a remount.

    Yields where it is seen: `folder` itself for root. Anyone else mounts in a namespace of their own, which a process
    keeps open, and sees it through /proc: a place that is not `in_place`, and that nobody can work in. Skips, with a
    reason that `pytest -ra` prints, where neither is allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = f"mount --bind '{source}' '{folder}'" if source else f"mount -t tmpfs -o size={size} tmpfs '{folder}'"
    script = first + (f" && mount -o remount,bind,{options} '{folder}'" if options else "")
    if subprocess.run(["/bin/sh", "-c", script], check=False, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["/bin/sh", "-c", f"umount -l '{folder}'"], check=True)
        return
    if in_place:
        pytest.skip("only root may mount here, for this process to see")
    keep = f'unshare --map-root-user --mount /bin/sh -c "{script} && echo yes && cat"'
    keeper = subprocess.Popen(["/bin/sh", "-c", f"exec {keep}"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert keeper.stdout is not None
    try:
        if keeper.stdout.readline() != b"yes\n":
            pytest.skip("neither root nor a user may mount here, so there is no small disk to fill")
        yield Path(f"/proc/{keeper.pid}/root{folder}")
    finally:
        keeper.communicate(b"")


def fill(folder: Path, left: int = 0) -> Path:
    """Write a file that leaves so many bytes on a file system; remove it to free the rest."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    state = os.statvfs(folder)
    with filler.open("wb") as file:
        if (size := state.f_bavail * state.f_frsize - left) > 0:
            os.posix_fallocate(file.fileno(), 0, size)
    return filler
