"""What a build reads beside the store: spec, lock, and the files that they name, at places that fit anywhere."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.datafiles import items_of, local_files, local_images
from specc.core.files import sha256
from specc.core.lock import lock_path
from specc.core.references import PACKAGE

FOLDER: Final = "project"
"""Folder of what is copied, below the one that is written, so that no name in it meets a script's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A build of a spec and what it names, by posix paths below one folder.

    `build` is its name in the spec's matrix, empty where there is none. `spec` and `lock` are the two texts' paths, in
    `texts` with their bytes. `files` are the data files, and a verifier's that is no hub's and no package's, with the
    sha256 that the lock has; `places` are theirs here.
    """

    name: str
    build: str
    spec: str
    lock: str
    texts: Mapping[str, bytes]
    files: Mapping[str, str]
    places: Mapping[str, Path]

    @property
    def arguments(self) -> tuple[str, ...]:
        """What stands behind `specc build` and its options, in the folder of the project."""
        return (*(("--only", self.build) if self.build else ()), f"./{self.spec}")

    def digest(self, path: str) -> str:
        """Return the hexadecimal sha256 of a text."""
        return sha256(self.texts[path])


def project_of(spec: Path, build: str, values: Mapping[str, Any]) -> Project:
    """Return the project of a build of a spec, whose lock is current and holds `values`.

    A spec that names files above its own folder (`../data`) keeps as much of its own path as that takes. Raises
    `OSError` if the spec or the lock cannot be read.
    """
    base, lock = spec.parent, lock_path(spec)
    named = dict(_named(values))
    above = max((posixpath.normpath(name).split("/").count("..") for name in named), default=0)
    folder = "/".join(base.resolve().parts[1:][-above:]) if above else ""
    paths = {name: posixpath.normpath(posixpath.join(folder, name)) for name in named}
    inside = {path: posixpath.join(folder, path.name) for path in (spec, lock)}
    return Project(
        name=str(values["name"]),
        build=build,
        spec=inside[spec],
        lock=inside[lock],
        texts={inside[path]: path.read_bytes() for path in (spec, lock)},
        files={paths[name]: digest for name, digest in sorted(named.items())},
        places={paths[name]: base / name for name in named},
    )


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the files that the locked values name relative to the spec, with their sha256."""
    verifier, init = values["verifier"], values["draft"].get("init")
    for _, item in items_of(values):
        named = {**local_files(item), **local_images(item)}
        yield from ((name, digest) for name, digest in named.items() if not name.startswith(PACKAGE))
    if init is not None and not init.get("revision"):  # else it is a hub's
        folder = init["convert"] if "convert" in init else init["from"]
        yield from ((posixpath.join(folder, name), digest) for name, digest in init["files"].items())
    if verifier["revision"] is None and not verifier["model"].startswith(PACKAGE):
        alone = verifier["format"] == "gguf"
        for name, digest in verifier["files"].items():
            yield verifier["model"] if alone else posixpath.join(verifier["model"], name), digest
