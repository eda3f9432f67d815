"""Garbage collection: what no lock, no ref, no recent build and no running build needs.

Roots are digests; an artifact is kept with everything that it was made of. What a killed build left to go on from
(its work folder, finished shards of an unfinished stage) is kept too, unless that is asked for.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.files import remove_tree
from specc.core.store.manifests import SHORT
from specc.core.store.store import Store, files_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What may go: artifacts, shards that only they hold, and folders that nobody works in. `size` is in bytes."""

    artifacts: tuple[Manifest, ...]
    shards: tuple[Path, ...]
    folders: tuple[Path, ...]
    sizes: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes that come free: a file counts once, and not at all if something that stays holds it."""
        return sum(self.sizes.values())


def garbage(store: Store, roots: Iterable[str], *, keep_last: int, unfinished: bool) -> Garbage:
    """Find what may go. `roots` come on top of the store's own; `keep_last` builds of each stage and spec stay."""
    present = set(store.digests())
    kept = _closure(store, [*roots, *store.refs().values(), *_leased(store), *_newest(store, keep_last)])
    artifacts = tuple(store.manifest(digest) for digest in sorted(present - kept))
    work = _folders(store.root / "work")
    # What builds and rebuilds put their output in before it had a name; and what they would go on from.
    left = _folders(store.root / "tmp") + (work if unfinished else [])
    folders = [path for path in left if not _held(store, path)]
    units = {path.stat().st_ino: path for path in _shards(store)}
    links = dict[int, int]()
    sizes = dict[str, int]()
    owner = dict[int, str]()
    for manifest in artifacts:
        sizes[manifest.digest] = 0
        for name, _, _ in manifest.files:
            with suppress(OSError):  # half deleted by hand
                inode = (store.path(manifest.digest) / name).stat().st_ino
                links[inode] = links.get(inode, 0) + 1
                owner[inode] = manifest.digest
    shards: list[Path] = []
    for inode, digest in owner.items():
        path = units.get(inode)
        file = path or _file(store, digest, inode)
        state = file.stat()
        if state.st_nlink == links[inode] + (path is not None):
            sizes[digest] += state.st_size
            if path is not None:
                shards.append(path)
    if unfinished and not any(_held(store, path) for path in work):
        alone = [path for path in units.values() if path.stat().st_nlink == 1]
        shards += alone
        sizes |= {str(path): path.stat().st_size for path in alone}
    sizes |= {str(path): _size(path) for path in folders}
    return Garbage(artifacts=artifacts, shards=tuple(sorted(shards)), folders=tuple(sorted(folders)), sizes=sizes)


def sweep(store: Store, found: Garbage) -> None:
    """Remove what was found; the caller has held the lock `gc` since before it was found."""
    for manifest in found.artifacts:
        store.remove(manifest.digest)
    for path in found.shards:
        path.with_name(path.name + ".sha256").unlink(missing_ok=True)  # the seal first: a shard without one is no shard
        path.unlink(missing_ok=True)
    for path in found.folders:
        remove_tree(path)


def _closure(store: Store, roots: Iterable[str]) -> set[str]:
    """Return the roots and all that they were made of, by any of the ways in which they came about."""
    made_of = dict[str, set[str]]()
    for indexed in store.indexed():
        made_of.setdefault(indexed.digest, set()).update(indexed.inputs.values())
    kept, waiting = set[str](), list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in kept:
            kept.add(digest)
            waiting += made_of.get(digest, set())
            with suppress(SpeccError):
                waiting += store.manifest(digest).inputs.values()
    return kept


def _leased(store: Store) -> set[str]:
    """Return the digests that running builds hold."""
    found = set[str]()
    for path in files_in(store.root / "leases"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if _is_locked(file.fileno()):
                found |= set(file.read().decode().split())
            else:  # its build was killed
                path.unlink(missing_ok=True)
    return found


def _newest(store: Store, count: int) -> set[str]:
    """Return for each spec's name and stage the `count` artifacts that were built last."""
    made = dict[str, dict[str, int]]()
    present = {path.name[:SHORT]: path.name[SHORT + 1 :] for path in store.root.iterdir()}
    for indexed in store.indexed():
        if (name := present.get(indexed.digest[:SHORT])) is not None:
            built = made.setdefault(name, {})
            built[indexed.digest] = max(store.record(indexed.key).get("order", 0), built.get(indexed.digest, 0))
    return {digest for built in made.values() for digest in sorted(built, key=built.__getitem__, reverse=True)[:count]}


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _shards(store: Store) -> list[Path]:
    """Return the finished shards that artifacts share."""
    return [path for path in (store.root / "units").rglob("*") if path.is_file() and path.suffix != ".sha256"]


def _held(store: Store, folder: Path) -> bool:
    """Tell whether a process works on what a folder below `tmp` or `work` is named after."""
    for path in files_in(store.root / "locks"):
        key = path.stem
        if key == folder.name or (len(key) == 64 and key[:16] in folder.name):
            with path.open("rb") as file:
                if _is_locked(file.fileno()):
                    return True
    return False


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _file(store: Store, digest: str, inode: int) -> Path:
    """Return the file of an artifact that has this inode."""
    folder = store.path(digest)
    return next(path for path in folder.rglob("*") if path.stat().st_ino == inode)


def _size(folder: Path) -> int:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            state = (Path(parent) / name).lstat()
            if state.st_nlink == 1:
                found[state.st_ino] = state.st_size
    return sum(found.values())
