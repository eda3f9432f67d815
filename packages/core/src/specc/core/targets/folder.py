"""The folder that a target is written to: whole or not at all, and never over what somebody else put there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import pretty, remove_tree, sha256, sha256_file, storage_error, sync
from specc.core.language.text import printable

MANIFEST: Final = "compiled.json"
"""What a folder was compiled from, and the sha256 of each of its files."""
EXECUTABLE: Final = (".sh", ".sbatch")


def write_folder(
    out: Path,
    files: Mapping[str, bytes],
    head: Mapping[str, Any],
    copies: Mapping[str, tuple[Path, str]],
) -> dict[str, str]:
    """Write `files`, copies of other files and the manifest to a folder, and return the sha256 of each by its path.

    `head` is what the manifest says beside that. `copies` maps paths to files and the sha256 that they must have. All
    of it is written beside `out` and then renamed. Raises `SpeccError` if there is anything in `out` that no compile
    wrote, if a file to be copied is not what it should be, or if the folder cannot be written.
    """
    place = out.resolve()
    earlier = _earlier(out)
    if Path.cwd().is_relative_to(place):
        raise SpeccError("the working directory cannot be replaced", where=str(out), hint="name a folder in it")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    except OSError as error:
        raise storage_error(error, place.parent, "name another folder") from error
    try:
        new = temporary / "new"
        new.mkdir()
        for path, data in files.items():
            _write(new / path, data)
        for path, (source, digest) in copies.items():
            _copy(source, new / path, digest)
        digests = {path: sha256(data) for path, data in files.items()}
        digests |= {path: digest for path, (_, digest) in copies.items()}
        manifest = pretty({**head, "files": digests}).encode()
        _write(new / MANIFEST, manifest)
        _put(new, place, temporary / "old" if earlier else None)
    except OSError as error:
        raise storage_error(error, place.parent, "name another folder") from error
    finally:
        remove_tree(temporary)
    return dict(sorted({**digests, MANIFEST: sha256(manifest)}.items()))


def _put(new: Path, place: Path, aside: Path | None) -> None:
    """Give a folder its name; what has that name goes `aside` first, and comes back if that cannot be."""
    if aside is not None:
        place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        if aside is not None:
            aside.rename(place)
        raise
    sync(place.parent)


def _earlier(out: Path) -> bool:
    """Tell whether a folder holds an earlier compile; raises `SpeccError` if it holds anything else."""
    if not os.path.lexists(out):
        return False
    if not out.is_dir():
        raise SpeccError("this is a file, not a folder", where=str(out), hint="name another folder")
    if not any(out.iterdir()):
        return False
    known = _known(out / MANIFEST)
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        ours = not path.is_symlink() and (path.is_dir() or name == MANIFEST or known.get(name, "") == _digest(path))
        if not ours:
            what = "was changed since" if name in known else "is not from an earlier compile"
            raise SpeccError(f"the folder is not empty, and `{printable(name)}` {what}", where=str(out),
                             hint="name another folder, or remove what is in this one")  # fmt: skip
    return True


def _known(manifest: Path) -> dict[str, str]:
    """Return the files of an earlier compile with their sha256, none if there was none."""
    try:
        found = json.loads(manifest.read_bytes())["files"]
        return {str(path): str(digest) for path, digest in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _digest(path: Path) -> str | None:
    """Return a plain file's sha256, None of anything else, which could be a pipe that never ends."""
    return sha256_file(path) if path.is_file() else None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755 if path.suffix in EXECUTABLE else 0o644)


def _copy(source: Path, path: Path, digest: str) -> None:
    """Copy a file; raises `SpeccError` if it is not there or not what the lock has."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    except FileNotFoundError:
        raise SpeccError(f"there is no file `{printable(str(source))}` to be copied",
                         hint="leave out `--with-files`, and put it there by hand") from None  # fmt: skip
    path.chmod(0o644)
    if sha256_file(path) != digest:
        raise SpeccError(f"`{printable(str(source))}` is not the file that the lock pins",
                         hint="`specc lock --check SPEC` says what moved")  # fmt: skip
