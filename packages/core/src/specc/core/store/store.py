"""The store: artifacts sealed under the hash of their content, and an index from keys to them.

    <digest[:12]>-<stage>-<name>/   an artifact, read-only
    manifests/<digest>.json         how the artifact first came about
    index/<stage>/<key>.json        the manifest of what a key gave; its `digest` names the artifact
    conflicts/<key>.json            digests that one key gave, when there was more than one
    records/<key>.json              times, rates, host and date of a key's last run
    last/<name>/<stage>.json        the manifest that a spec's last build had
    refs/<name>                     the digest of a named artifact
    leases/<pid>-<n>                digests that a running build needs; locked as long as it runs
    locks/  work/<stage>-<key>/  units/<stage>/  logs/<key>.log  tmp/  digests

A file that says something about an artifact is written after what it speaks of is on the disk, so that a crash at
any point leaves either nothing or the truth.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from specc.core.contracts import Manifest, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.files import (
    FileEntry,
    digest_of,
    directory_digest,
    pretty,
    remove_tree,
    storage_error,
    sync,
    walk,
    write_atomic,
)
from specc.core.store.digests import DigestCache
from specc.core.store.manifests import SHORT, differences, dump_manifest, file_name, read_manifest
from specc.core.store.place import absolute, store_root

_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")


class Store:
    """A folder of artifacts, shared by any number of processes.

    Every method that writes raises `SpeccError` (exit code 3) when the disk is full, read-only or not ours; a
    method that only reads needs nothing but the folder, which need not be there.
    """

    def __init__(self, root: Path) -> None:
        self.root = absolute(root)
        self._digests = DigestCache(self.root / "digests")

    @classmethod
    def locate(cls, spec: Path, configured: str | None = None) -> Store:
        """Return a spec's store: `SPECC_STORE`, else `configured` (relative to the spec), else the project's."""
        return cls(store_root(spec, configured))

    # What is there

    def find(self, stage: str, key: str) -> str | None:
        """Return the digest of a key's artifact, None if the artifact or its manifest is not there whole."""
        indexed = read_manifest(self._index(stage, key))
        return indexed.digest if indexed is not None and self._whole(indexed.digest) else None

    def path(self, digest: str) -> Path:
        """Return an artifact's folder; raises `SpeccError` if it is not in the store."""
        folder = self._folder(digest)
        if folder is None:
            raise self._unknown(digest)
        return folder

    def manifest(self, digest: str, key: str | None = None) -> Manifest:
        """Return how an artifact came about: by `key` if that is given and gave it, else how it first did.

        Raises `SpeccError` if the artifact has no readable manifest.
        """
        if key is not None:
            for path in (self.root / "index").glob(f"*/{key}.json"):
                indexed = read_manifest(path)
                if indexed is not None and indexed.digest == digest:
                    return indexed
        manifest = read_manifest(self._manifest(digest))
        if manifest is None:
            raise self._unknown(digest)
        return manifest

    def digests(self) -> list[str]:
        """Return the digests of all artifacts that are there whole, sorted."""
        if not self.root.is_dir():
            return []
        folders = {path.name[:SHORT] for path in self.root.iterdir()}
        named = (path.stem for path in files_in(self.root / "manifests"))
        return sorted(digest for digest in named if digest[:SHORT] in folders and self._whole(digest))

    def indexed(self) -> Iterator[Manifest]:
        """Yield how every artifact came about, once for each key that gave it, whether it is still there or not."""
        for path in (self.root / "index").glob("*/*.json"):
            if (manifest := read_manifest(path)) is not None:
                yield manifest

    def record(self, key: str) -> dict[str, Any]:
        """Return the record of a key's last run (times in seconds, rates, host, date); empty if it never ran here."""
        try:
            found = json.loads((self.root / "records" / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def resolve(self, name: str) -> str:
        """Return the digest that a person means: the start of an id (4 digits or more), a ref, an artifact's folder.

        Raises `SpeccError` if nothing or more than one thing is meant.
        """
        text = name.strip().rstrip("/")
        if (named := self.refs().get(text)) is not None:
            return named
        match = _ID.fullmatch(Path(text).name.split("-")[0].lower())
        if match is None:
            raise SpeccError(
                f"`{name}` is not the id of an artifact",
                hint="give the first 4 or more digits of a digest; `specc status SPEC` lists them",
            )
        found = [digest for digest in self.digests() if digest.startswith(match[1])]
        if not found:
            raise self._unknown(match[1])
        if len(found) > 1:
            which = [f"sha256:{digest[:SHORT]}… {self.manifest(digest).stage}" for digest in found]
            raise SpeccError(
                f"the id `{name}` is the start of {len(found)} artifacts",
                note="\n  ".join(which),
                hint="give more of it",
            )
        return found[0]

    def verify(self, digest: str) -> list[str]:
        """Hash an artifact again, with no cache, and return every difference from its manifest in words."""
        return differences(self.path(digest), self.manifest(digest))

    def remove(self, digest: str) -> None:
        """Remove an artifact; the index keeps what its keys gave, so that a rebuild is still compared with it."""
        folder = self.path(digest)
        with self._writing():
            folder.chmod(0o700)
            gone = folder.rename(
                self._made("tmp") / f"removed-{folder.name}"
            )  # first out of sight, then piece by piece
            self._manifest(digest).unlink(missing_ok=True)
            remove_tree(gone)

    def file_digest(self, path: Path) -> str:
        """Return the sha256 of any file, from the cache if the file has not changed since it was hashed."""
        return self._digests.sha256(path)

    # Places that a build works in

    def work(self, stage: str, key: str) -> Path:
        """Return the folder that belongs to a key alone and outlives a crash."""
        return self._made("work", f"{stage}-{key[:16]}")

    def units(self, stage: str) -> Path:
        """Return the folder of the finished shards that all keys of a stage share."""
        return self._made("units", stage)

    def log(self, key: str) -> Path:
        """Return the file that a key's runs append what their engines print to."""
        return self._made("logs") / f"{key}.log"

    @contextmanager
    def lock(self, key: str, wait: Callable[[], None]) -> Generator[int]:
        """Hold a key's lock; `wait` is called once if another process holds it.

        Yields the file descriptor. The lock lasts until every process that inherited it is gone (flock(2)),
        so that a stage can hold it on its own. A lock's file is never removed: two processes could then
        each hold the lock of the same name.
        """
        path = self._made("locks") / f"{key}.lock"
        with self._writing():
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with self._writing():
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    wait()
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def begin(self, stage: str, key: str) -> Path:
        """Return a fresh empty folder for a key's output; the caller holds the key's lock.

        What an earlier run of the key left behind when it was killed is removed.
        """
        prefix = f"{stage}-{key[:16]}-"
        folder = self._made("tmp")
        with self._writing():
            for stale in folder.glob(f"{prefix}*"):
                remove_tree(stale)
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))

    @contextmanager
    def scratch(self) -> Generator[Store]:
        """Hold an empty store inside this one, on the same disk; who asked for it removes its folder."""
        folder = self._made("tmp")
        with self._writing():
            fresh = Store(Path(tempfile.mkdtemp(prefix="rebuild-", dir=folder)))
        with self.lock(fresh.root.name, lambda: None):
            yield fresh
        (self.root / "locks" / f"{fresh.root.name}.lock").unlink(missing_ok=True)  # a name that nobody else has

    @contextmanager
    def lease(self) -> Generator[Callable[[str], None]]:
        """Keep what a running build needs from `gc`, for as long as this process lives and no longer.

        Yields what holds a digest. If `gc` was there first the artifact is gone, which the caller must look at
        afterwards.
        """
        folder = self._made("leases")
        with self._writing():
            handle, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=folder)
            fcntl.flock(handle, fcntl.LOCK_EX)

        def hold(digest: str) -> None:
            with self.lock("gc", lambda: None), self._writing():
                os.write(handle, f"{digest}\n".encode())

        try:
            yield hold
        finally:
            with suppress(OSError):
                Path(name).unlink()
            os.close(handle)

    # Sealing

    def seal(self, job: StageJob, name: str, output: Path, record: Mapping[str, Any]) -> Manifest:
        """Make a stage's output an artifact and return its manifest.

        Raises `SpeccError` if the output is empty or holds anything but files and folders (exit code 3), or
        if the key gave another digest before (exit code 4; both artifacts are then in the store).
        """
        with self._writing():
            files, tensors = self._settle(output, job.stage)
            manifest = Manifest(
                digest=directory_digest(files),
                tensors=tensors,
                stage=job.stage,
                version=job.version,
                key=job.key,
                params=job.params,
                facets=job.facets,
                inputs={slot: item.digest for slot, item in job.inputs.items()},
                files=tuple((entry.path, entry.size, entry.sha256) for entry in files),
            )
        # Keys have locks of their own, and two keys may give the same bytes at the same time.
        with self.lock("seal", lambda: None), self._writing():
            if self._whole(manifest.digest):
                remove_tree(output)
            else:
                self._place(manifest, name, output)
            before = read_manifest(self._index(job.stage, job.key))
            write_atomic(self.root / "records" / f"{job.key}.json", pretty({**record, "order": self._count()}))
            if before is not None and before.digest != manifest.digest:
                raise self._conflict(before, manifest)
            write_atomic(self._index(job.stage, job.key), dump_manifest(manifest))
        return manifest

    def _count(self) -> int:
        """Return one more than the last time: a clock may jump, and which of two artifacts is newer must not."""
        path = self.root / "order"
        number = int(path.read_text()) + 1 if path.is_file() else 1
        write_atomic(path, f"{number}\n")
        return number

    def _settle(self, output: Path, stage: str) -> tuple[list[FileEntry], str | None]:
        """Make an output read-only and durable; return its files and the digest of all its tensors."""
        paths = list(walk(output))
        if not paths:
            raise SpeccError(f"the stage `{stage}` wrote nothing", code=Exit.STAGE)
        files: list[FileEntry] = []
        tensors: list[list[str]] = []
        for path in paths:
            inside = path.relative_to(output).as_posix()
            path.chmod(0o444)
            sync(path)
            files.append(FileEntry(inside, path.stat().st_size, self._digests.sealed_sha256(path)))
            if path.suffix == ".safetensors":
                tensors.append([inside, self._digests.sealed_tensors(path)])
        for parent, _, _ in os.walk(output, topdown=False):
            folder = Path(parent)
            if folder != output:
                if not any(folder.iterdir()):
                    folder.rmdir()  # a digest knows files only
                    continue
                folder.chmod(0o555)
            sync(folder)
        return sorted(files, key=lambda entry: entry.path), digest_of(sorted(tensors)) if tensors else None

    def _place(self, manifest: Manifest, name: str, output: Path) -> None:
        """Give a settled output its name; the manifest goes first, so that no folder is ever without one."""
        write_atomic(self._manifest(manifest.digest), dump_manifest(manifest))
        there = self._folder(manifest.digest)
        if there is not None:  # whole, as every named folder is; it was its manifest that was not readable
            remove_tree(output)
            return
        target = self.root / f"{manifest.digest[:SHORT]}-{manifest.stage}-{file_name(name)}"
        output.rename(target)
        target.chmod(0o555)  # not before: a folder that is moved must be writable, for its `..`
        sync(target)
        sync(self.root)

    def _conflict(self, before: Manifest, after: Manifest) -> SpeccError:
        path = self.root / "conflicts" / f"{after.key}.json"
        try:
            known = set(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            known = set[str]()
        write_atomic(path, pretty(sorted(known | {before.digest, after.digest})))
        places = [str(self._folder(item.digest) or "no longer in the store") for item in (before, after)]
        alike = "\n  the tensors are the same, bit by bit" if before.tensors == after.tensors is not None else ""
        return SpeccError(
            f"the stage `{after.stage}` gave sha256:{after.digest[:SHORT]}…, and sha256:{before.digest[:SHORT]}…"
            " before from the same key",
            note=f"before: {places[0]}\n  now:    {places[1]}{alike}",
            hint="nothing that should decide its bits differs: compare the two; to go on with the new one, remove"
            f" {self._index(after.stage, after.key)}",
            code=Exit.DIFFERENCE,
        )

    # What a spec's builds leave

    def note_last(self, name: str, stage: str, manifest: Manifest) -> None:
        """Remember what a spec's build had for a stage: `plan` compares with it to say what changed."""
        with self._writing():
            write_atomic(self._last(name, stage), dump_manifest(manifest))

    def last(self, name: str, stage: str) -> Manifest | None:
        """Return what the last build of a spec had for a stage."""
        return read_manifest(self._last(name, stage))

    def name_ref(self, name: str, digest: str) -> None:
        """Give an artifact a name; a ref keeps it, and what it was made of, from `gc`."""
        with self._writing():
            write_atomic(self.root / "refs" / file_name(name), digest + "\n")

    def refs(self) -> dict[str, str]:
        """Return the named artifacts' digests."""
        folder = self.root / "refs"
        return {path.name: path.read_text().strip() for path in files_in(folder)}

    def _whole(self, digest: str) -> bool:
        return self._folder(digest) is not None and read_manifest(self._manifest(digest)) is not None

    def _folder(self, digest: str) -> Path | None:
        return next(self.root.glob(f"{digest[:SHORT]}-*/"), None)

    def _manifest(self, digest: str) -> Path:
        return self.root / "manifests" / f"{digest}.json"

    def _index(self, stage: str, key: str) -> Path:
        return self.root / "index" / stage / f"{key}.json"

    def _last(self, name: str, stage: str) -> Path:
        return self.root / "last" / file_name(name) / f"{stage}.json"

    def _made(self, *parts: str) -> Path:
        folder = self.root.joinpath(*parts)
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _unknown(self, digest: str) -> SpeccError:
        return SpeccError(
            f"no artifact `{digest[:SHORT]}` in the store",
            where=str(self.root),
            hint="`specc status SPEC` lists a spec's artifacts, and `specc build SPEC` builds those that are missing",
        )

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, self.root) from error


def files_in(folder: Path) -> Iterator[Path]:
    """Yield a folder's files in the order of their names, but for hidden ones; none if it is not there."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
