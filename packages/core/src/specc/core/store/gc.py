"""Garbage collection: what no lock, no ref, no recent build and no running build needs.

Roots are digests; an artifact is kept with everything that it was made of. What a killed build left to go on from
(its work folder, finished shards of an unfinished stage) is kept too, unless that is asked for.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.files import writing
from specc.core.store.layout import files_in
from specc.core.store.manifests import SHORT
from specc.core.store.store import Store

_ARTIFACT: Final = re.compile(r"[0-9a-f]{12}-")


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
    """Find what may go. `roots` come on top of the store's own; `keep_last` builds of each stage and spec stay.

    The caller holds the lock `gc`. Raises `SpeccError` if it is not known what a ref or a running build needs.
    """
    present = store.digests()
    kept = _closure(store, [*roots, *_named(store), *_leased(store), *_newest(store, keep_last)])
    artifacts = tuple(store.manifest(digest) for digest in present if digest not in kept)
    work = _folders(store.root / "work")
    # What builds and rebuilds put their output in before it had a name; and what they would go on from.
    left = _folders(store.root / "tmp") + (work if unfinished else [])
    folders = [path for path in left if not _held(store, path)] + _strays(store, {*present, *kept})
    units = _shards(store)
    sizes = dict[str, int]()
    links, owner = dict[int, int](), dict[int, tuple[str, os.stat_result]]()
    for manifest in artifacts:
        sizes[manifest.digest] = 0
        for state in _states(store, manifest):
            links[state.st_ino] = links.get(state.st_ino, 0) + 1
            owner[state.st_ino] = manifest.digest, state
    shards: list[Path] = []
    for inode, (digest, state) in owner.items():
        unit = units.get(inode)
        if state.st_nlink == links[inode] + (unit is not None):
            sizes[digest] += state.st_size
            if unit is not None:
                shards.append(unit[0])
    if unfinished and not any(_held(store, path) for path in work):
        alone = {path: state.st_size for path, state in units.values() if state.st_nlink == 1}
        shards += alone
        sizes |= {str(path): size for path, size in alone.items()}
    sizes |= {str(path): _size(path) for path in folders}
    return Garbage(artifacts=artifacts, shards=tuple(sorted(shards)), folders=tuple(sorted(folders)), sizes=sizes)


def sweep(store: Store, found: Garbage) -> None:
    """Remove what was found; the caller has held the lock `gc` since before it was found."""
    for manifest in found.artifacts:
        store.remove(manifest.digest)
    with writing(store.root):
        for path in found.shards:
            path.with_name(path.name + ".sha256").unlink(missing_ok=True)  # first: a shard without a seal is no shard
            path.unlink(missing_ok=True)
    for path in found.folders:
        store.discard(path)


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


def _named(store: Store) -> list[str]:
    refs = store.refs()
    if unknown := next((name for name, digest in refs.items() if not digest), None):
        raise SpeccError(
            f"the ref `{unknown}` cannot be read, so what it needs is not known",
            where=str(store.root / "refs" / unknown),
            hint="`specc build` of its spec writes it anew, or remove it",
        )
    return list(refs.values())


def _leased(store: Store) -> set[str]:
    """Return the digests that running builds hold."""
    found = set[str]()
    for path in files_in(store.root / "leases"):
        try:
            with path.open("rb") as file:
                if _is_locked(file.fileno()):
                    found |= set(file.read().decode(errors="replace").split())
                else:  # its build was killed
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise SpeccError(
                "what a running build of another user needs cannot be read", where=str(path),
                hint="run `specc gc` as the user who owns it", code=Exit.STAGE,
            ) from error  # fmt: skip
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


def _strays(store: Store, known: Iterable[str]) -> list[Path]:
    """Return the folders of artifacts whose manifests are gone, unless something needs them: a build mends those."""
    short = {digest[:SHORT] for digest in known}
    return [path for path in _folders(store.root) if _ARTIFACT.match(path.name) and path.name[:SHORT] not in short]


def _states(store: Store, manifest: Manifest) -> Iterator[os.stat_result]:
    """Yield what is known of an artifact's files, those that are there."""
    for name, _, _ in manifest.files:
        with suppress(OSError, SpeccError):  # half deleted by hand
            yield (store.path(manifest.digest) / name).lstat()


def _shards(store: Store) -> dict[int, tuple[Path, os.stat_result]]:
    """Return the finished shards that artifacts share, by inode."""
    found = dict[int, tuple[Path, os.stat_result]]()
    for path in (store.root / "units").glob("*/??/*"):
        with suppress(FileNotFoundError):  # a build may replace one now
            state = path.lstat()
            if stat.S_ISREG(state.st_mode) and path.suffix != ".sha256":
                found[state.st_ino] = path, state
    return found


def _held(store: Store, folder: Path) -> bool:
    """Tell whether a process works on what a folder below `tmp` or `work` is named after."""
    for path in files_in(store.root / "locks"):
        key = path.stem
        if key == folder.name or (len(key) == 64 and key[:16] in folder.name):
            with suppress(FileNotFoundError), path.open("rb") as file:  # a rebuild's goes with its folder
                if _is_locked(file.fileno()):
                    return True
    return False


def _is_locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _size(folder: Path) -> int:
    found = dict[int, int]()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                state = (Path(parent) / name).lstat()
                if state.st_nlink == 1:
                    found[state.st_ino] = state.st_size
    return sum(found.values())
