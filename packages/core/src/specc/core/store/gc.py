"""Garbage collection: what no lock, no ref, no recent build and no running build needs.

Roots are digests; an artifact is kept with everything that it was made of. What a killed build left to go on from
(its work folder, finished shards of an unfinished stage) is kept too, unless that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.files import remove_tree
from specc.core.store.store import Store


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
    kept = _closure(store, [*roots, *store.roots(), *store.newest(keep_last)])
    artifacts = tuple(store.manifest(digest) for digest in sorted(present - kept))
    folders = [path for path in store.leftovers() if not store.held(path.name)]
    if unfinished:
        folders += [path for path in store.unfinished() if not store.held(path.name)]
    units = {path.stat().st_ino: path for path in store.shards()}
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
    if unfinished and not store.busy():
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
    made_of = store.parents()
    kept, waiting = set[str](), list(roots)
    while waiting:
        digest = waiting.pop()
        if digest not in kept:
            kept.add(digest)
            waiting += made_of.get(digest, set())
            with suppress(SpeccError):
                waiting += store.manifest(digest).inputs.values()
    return kept


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
