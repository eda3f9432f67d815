"""Where everything in a store is, and how one process at a time writes there."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from specc.core.contracts import Manifest
from specc.core.files import writing
from specc.core.store.manifests import SHORT, file_name, read_manifest


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a store's files; `specc.core.store.store` says what each of them holds."""

    root: Path

    def folder(self, digest: str) -> Path | None:
        """Return an artifact's folder, if it is there."""
        return next(self.root.glob(f"{digest[:SHORT]}-*/"), None)

    def manifest(self, digest: str) -> Path:
        """Return the file of an artifact's manifest."""
        return self.root / "manifests" / f"{digest}.json"

    def index(self, stage: str, key: str) -> Path:
        """Return the file of the manifest that a key gave."""
        return self.root / "index" / stage / f"{key}.json"

    def record(self, key: str) -> Path:
        """Return the file of a key's record."""
        return self.root / "records" / f"{key}.json"

    def last(self, name: str, stage: str) -> Path:
        """Return the file of the manifest that a spec's last build had."""
        return self.root / "last" / file_name(name) / f"{stage}.json"

    def indexed(self) -> Iterator[Manifest]:
        """Yield how every artifact came about, once for each key that gave it, whether it is still there or not."""
        for path in (self.root / "index").glob("*/*.json"):
            if (manifest := read_manifest(path)) is not None:
                yield manifest

    def made(self, *parts: str) -> Path:
        """Return a folder, which is made if it is not there."""
        folder = self.root.joinpath(*parts)
        with self.writing():
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def aside(self, folder: Path) -> Path:
        """Move a folder out of sight, so that nobody sees a part of it; return where it is, to be removed.

        What a kill leaves there is removed by `gc`.
        """
        if not folder.is_symlink():
            folder.chmod(0o700)  # a folder that is moved must be writable, for its `..`
        return folder.rename(self.made("tmp") / f"removed-{secrets.token_hex(4)}-{folder.name}")

    def writing(self) -> AbstractContextManager[None]:
        """Turn what the system refuses into a `SpeccError`."""
        return writing(self.root)

    @contextmanager
    def lock(self, key: str, wait: Callable[[], None]) -> Generator[int]:
        """Hold a lock; `wait` is called once if another process holds it.

        Yields the file descriptor. The lock lasts until every process that inherited it is gone (flock(2)),
        so that a stage can hold it on its own. A lock's file is never removed: two processes could then
        each hold the lock of the same name.
        """
        path = self.made("locks") / f"{key}.lock"
        with self.writing():
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with self.writing():
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    wait()
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)


def files_in(folder: Path) -> Iterator[Path]:
    """Yield a folder's files in the order of their names, but for hidden ones; none if it is not there."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
