"""The store: artifacts sealed under the hash of their content, and an index from keys to them.

    <digest[:12]>-<stage>-<name>/   an artifact, read-only
    manifests/<digest>.json         how the artifact first came about
    index/<stage>/<key>.json        the manifest of what a key gave; its `digest` names the artifact
    conflicts/<key>.json            digests that one key gave, when there was more than one
    records/<key>.json              times, rates, host and date of a key's last run
    last/<name>/<stage>.json        the manifest that a spec's last build had
    refs/<name>                     the digest of a named artifact
    leases/<pid>-<n>                digests that a running build needs; locked as long as it runs
    locks/  work/<stage>-<key>/  units/<stage>/  logs/<key>.log  logs/<key>/  tmp/  digests

Locks are named after a key (its stage runs), a digest (it is being placed or removed), `seal` or `gc`.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from specc.core.contracts import Manifest, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.files import remove_tree, write_atomic
from specc.core.store.digests import DigestCache
from specc.core.store.layout import Layout, files_in
from specc.core.store.manifests import (
    DIGEST,
    SHORT,
    differences,
    dump_manifest,
    file_name,
    lacking,
    read_manifest,
    read_record,
)
from specc.core.store.place import absolute, store_root
from specc.core.store.sealing import seal

_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")


class Store:
    """A folder of artifacts, shared by any number of processes.

    Every method that writes raises `SpeccError` (exit code 3) when the disk is full, read-only or not ours; a
    method that only reads needs nothing but the folder, which need not be there.
    """

    def __init__(self, root: Path) -> None:
        self.root = absolute(root)
        self._at = Layout(self.root)
        self._digests = DigestCache(self.root / "digests")

    @classmethod
    def locate(cls, spec: Path, configured: str | None = None) -> Store:
        """Return a spec's store: `SPECC_STORE`, else `configured` (relative to the spec), else the project's."""
        return cls(store_root(spec, configured))

    # What is there

    def find(self, stage: str, key: str) -> str | None:
        """Return the digest of a key's artifact; None if it is not there, or lacks a file or a part of one."""
        digest = self.gave(stage, key)
        return digest if digest is not None and self._lacking(digest) is None else None

    def gave(self, stage: str, key: str) -> str | None:
        """Return the digest of the artifact that a key gave, if that is there, whole or not."""
        indexed = read_manifest(self._at.index(stage, key))
        return indexed.digest if indexed is not None and self._at.folder(indexed.digest) is not None else None

    def damage(self, stage: str, key: str) -> str | None:
        """Say what the artifact that a key gave lacks; None if it is whole, or not there at all."""
        digest = self.gave(stage, key)
        return None if digest is None else self._lacking(digest)

    def require(self, digest: str, stage: str) -> None:
        """Raise `SpeccError` (exit code 4) if an artifact is not what was sealed, before a stage reads it.

        Files that did not change since they were hashed are not hashed again. `stage` is what the user knows it by.
        """
        folder, manifest = self.path(digest), self.manifest(digest)
        wrong = next(differences(folder, manifest, self._digests.sealed_sha256), None)
        if wrong is not None:
            raise SpeccError(
                f"the artifact `{stage}` (sha256:{digest[:SHORT]}…) is damaged: {wrong}",
                where=str(folder),
                hint=f"`specc build --force --stage {stage} SPEC` builds it again in its place",
                code=Exit.DIFFERENCE,
            )

    def path(self, digest: str) -> Path:
        """Return an artifact's folder; raises `SpeccError` if it is not in the store."""
        folder = self._at.folder(digest)
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
        manifest = self._manifest(digest)
        if manifest is None:
            raise self._unknown(digest)
        return manifest

    def digests(self) -> list[str]:
        """Return the digests of all artifacts that have a folder and a manifest, whole or not, sorted."""
        if not self.root.is_dir():
            return []
        folders = {path.name[:SHORT] for path in self.root.iterdir() if path.is_dir()}
        named = (path.stem for path in files_in(self.root / "manifests"))
        return sorted(digest for digest in named if digest[:SHORT] in folders and self._manifest(digest) is not None)

    def indexed(self) -> Iterator[Manifest]:
        """Yield how every artifact came about, once for each key that gave it, whether it is still there or not."""
        return self._at.indexed()

    def record(self, key: str) -> dict[str, Any]:
        """Return the record of a key's last run (times in seconds, rates, host, date); empty if it never ran here."""
        return read_record(self._at.record(key))

    def resolve(self, name: str) -> str:
        """Return the digest that a person means: the start of an id (4 digits or more), a ref, an artifact's folder.

        Raises `SpeccError` if nothing or more than one thing is meant.
        """
        text = name.strip().rstrip("/")
        if named := self.refs().get(text):
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
        """Hash an artifact again, with no cache, and return every difference from its manifest in words.

        What is found is remembered, so that no build goes on from a file that a bad disk changed.
        """
        return list(differences(self.path(digest), self.manifest(digest), self._digests.anew))

    def remove(self, digest: str) -> None:
        """Remove an artifact; the index keeps what its keys gave, so that a rebuild is still compared with it."""
        with self.lock(digest, lambda: None), self._at.writing():
            remove_tree(self._at.aside(self.path(digest)))
            self._at.manifest(digest).unlink(missing_ok=True)

    def discard(self, folder: Path) -> None:
        """Remove a folder below the store, at once for all who look for it by its name; one that is gone is fine."""
        with self._at.writing(), suppress(FileNotFoundError):
            remove_tree(self._at.aside(folder))

    def file_digest(self, path: Path) -> str:
        """Return the sha256 of any file, from the cache if the file has not changed since it was hashed."""
        return self._digests.sha256(path)

    # Places that a build works in

    def work(self, stage: str, key: str, *, make: bool = True) -> Path:
        """Return the folder that belongs to a key alone and outlives a crash; it is made unless told otherwise."""
        name = f"{stage}-{key[:16]}"
        return self._at.made("work", name) if make else self.root / "work" / name

    def units(self, stage: str) -> Path:
        """Return the folder of the finished shards that all keys of a stage share."""
        return self._at.made("units", stage)

    def log(self, key: str) -> Path:
        """Return the file that a key's runs append what their engines print to."""
        return self._at.made("logs") / f"{key}.log"

    def lock(self, key: str, wait: Callable[[], None]) -> AbstractContextManager[int]:
        """Hold a lock and hand on its file descriptor; `wait` is called once if another process holds it."""
        return self._at.lock(key, wait)

    def begin(self, stage: str, key: str) -> Path:
        """Return a fresh empty folder for a key's output; the caller holds the key's lock.

        What an earlier run of the key left behind when it was killed is removed. A `gc` at work comes to its end
        first: it has not seen that the key is held.
        """
        prefix = f"{stage}-{key[:16]}-"
        folder = self._at.made("tmp")
        with self.lock("gc", lambda: None), self._at.writing():
            for stale in folder.glob(f"{prefix}*"):
                with suppress(PermissionError):  # another user's, and in nobody's way
                    remove_tree(stale)
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))

    @contextmanager
    def scratch(self) -> Generator[Store]:
        """Hold an empty store inside this one, on the same disk; who asked for it removes its folder."""
        folder = self._at.made("tmp")
        with ExitStack() as held:
            with self.lock("gc", lambda: None), self._at.writing():
                fresh = Store(Path(tempfile.mkdtemp(prefix="rebuild-", dir=folder)))
                held.enter_context(self.lock(fresh.root.name, lambda: None))
            yield fresh
        with suppress(OSError):  # a name that nobody else has
            (self.root / "locks" / f"{fresh.root.name}.lock").unlink(missing_ok=True)

    @property
    def writable(self) -> bool:
        """Whether this process may write here; a store that is not there yet will be made."""
        return not self.root.is_dir() or os.access(self.root, os.W_OK)

    @contextmanager
    def lease(self) -> Generator[Callable[[str], None]]:
        """Keep what a running build needs from `gc`, for as long as this process lives and no longer.

        Yields what holds a digest. If `gc` was there first the artifact is gone, which the caller must look at
        afterwards. Nothing is held in a store that this process cannot write.
        """
        if not self.writable:
            yield lambda digest: None
            return
        folder = self._at.made("leases")
        with self.lock("gc", lambda: None), self._at.writing():  # or `gc` would take it for that of a killed build
            handle, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=folder)
            os.fchmod(handle, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)

        def hold(digest: str) -> None:
            with self.lock("gc", lambda: None), self._at.writing():
                os.write(handle, f"{digest}\n".encode())

        try:
            yield hold
        finally:
            with suppress(OSError):
                Path(name).unlink()
            os.close(handle)

    def seal(self, job: StageJob, name: str, output: Path, record: Mapping[str, Any]) -> Manifest:
        """Make a stage's output an artifact and return its manifest; see `specc.core.store.sealing`."""
        return seal(job, name, output, record, at=self._at, digests=self._digests)

    # What a spec's builds leave

    def note_last(self, name: str, stage: str, manifest: Manifest) -> None:
        """Remember what a spec's build had for a stage: `plan` compares with it to say what changed."""
        if self.last(name, stage) != manifest:
            with self._at.writing():
                write_atomic(self._at.last(name, stage), dump_manifest(manifest))

    def last(self, name: str, stage: str) -> Manifest | None:
        """Return what the last build of a spec had for a stage."""
        return read_manifest(self._at.last(name, stage))

    def name_ref(self, name: str, digest: str) -> None:
        """Give an artifact a name; a ref keeps it, and what it was made of, from `gc`."""
        if self.refs().get(file_name(name)) != digest:
            with self._at.writing():
                write_atomic(self.root / "refs" / file_name(name), digest + "\n")

    def forget_ref(self, name: str) -> None:
        """Take a name from its artifact, which stays for as long as something else keeps it.

        Raises `SpeccError` if there is no such name.
        """
        if name not in self.refs():
            raise SpeccError(f"no artifact is named `{name}`", where=str(self.root / "refs"),
                             hint="`specc status` lists the names")  # fmt: skip
        with self._at.writing():
            (self.root / "refs" / name).unlink(missing_ok=True)

    def refs(self) -> dict[str, str]:
        """Return the named artifacts' digests, empty for a name whose file says none."""
        said = {path.name: path.read_bytes().decode(errors="replace").strip() for path in files_in(self.root / "refs")}
        return {name: digest if DIGEST.fullmatch(digest) else "" for name, digest in said.items()}

    def _lacking(self, digest: str) -> str | None:
        folder, manifest = self._at.folder(digest), self._manifest(digest)
        if folder is None or manifest is None:
            return f"its {'folder' if folder is None else 'manifest'} cannot be read"
        return lacking(folder, manifest)

    def _manifest(self, digest: str) -> Manifest | None:
        return read_manifest(self._at.manifest(digest))

    def _unknown(self, digest: str) -> SpeccError:
        return SpeccError(
            f"no artifact `{digest[:SHORT]}` in the store",
            where=str(self.root),
            hint="`specc status SPEC` lists a spec's artifacts, and `specc build SPEC` builds those that are missing",
        )
