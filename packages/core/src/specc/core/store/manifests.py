"""Manifests, records and names as they stand in the store's files; whether a folder is what its manifest says."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.files import FileEntry, directory_digest, pretty, sha256, walk

SHORT: Final = 12
"""Hexadecimal digits of a digest in the name of an artifact's folder and in sentences."""
LONGEST_NAME: Final = 60
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TYPES: Final = {"digest": str, "stage": str, "version": int, "key": str, "params": dict, "facets": dict,
                 "inputs": dict, "files": list}  # fmt: skip
_RECORDED: Final = {"seconds": (int, float), "order": int, "started": str, "host": str}


def dump_manifest(manifest: Manifest) -> str:
    """Return a manifest as sorted JSON."""
    return pretty(asdict(manifest))


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None if it is not there or not one: cut short, of another version, of files elsewhere."""
    try:
        raw = json.loads(path.read_bytes())
        good = all(isinstance(raw[name], kind) for name, kind in _TYPES.items())
        digests = [
            raw["digest"],
            *raw["inputs"].values(),
            *raw.get("keys", {}).values(),
            *(digest for _, _, digest in raw["files"]),
        ]
        good = good and all(DIGEST.fullmatch(digest) for digest in digests)
        good = good and all(_is_inside(name) and size >= 0 for name, size, _ in raw["files"])
        raw["files"] = tuple((str(name), int(size), str(digest)) for name, size, digest in raw["files"])
        return Manifest(**raw) if good else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """Read a record, less what is not what its name says; empty if it is not there or not one."""
    try:
        raw = dict[str, Any](json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return {name: value for name, value in raw.items() if isinstance(value, _RECORDED.get(name, object))}


def _is_inside(name: str) -> bool:
    """Tell whether the name of an artifact's file stays inside its folder."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def file_name(name: str) -> str:
    """Return `name` as a file's name: itself if it can be one, else what is left of it and a part of its hash."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_NAME]
    return kept if kept and kept == name else f"{kept or 'unnamed'}-{sha256(name.encode(errors='replace'))[:6]}"


def lacking(folder: Path, manifest: Manifest) -> str | None:
    """Return in words the first file of a manifest that a folder lacks or has in another size; no file is read."""
    for name, size, _ in manifest.files:
        try:
            found = os.lstat(f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return f"{name}: missing"
        except OSError as error:
            return f"{name}: {error.strerror}"
        if not stat.S_ISREG(found.st_mode):
            return f"{name}: not a plain file"
        if found.st_size != size:
            return _sizes(name, found.st_size, size)
    return None


def differences(folder: Path, manifest: Manifest, hash_file: Callable[[Path], str]) -> Iterator[str]:
    """Yield in words every difference of a folder's content from a manifest; files of another size are not hashed."""
    listed = {path: FileEntry(path, size, digest) for path, size, digest in manifest.files}
    if directory_digest(listed.values()) != manifest.digest:
        yield "the manifest lists other files than its digest stands for"
    try:
        here = {path.relative_to(folder).as_posix(): path for path in walk(folder)}
    except SpeccError as error:
        yield f"{error.where}: {error.message}"
        return
    except OSError as error:
        yield f"{error.filename}: {error.strerror}"
        return
    for name in sorted({*here, *listed}):
        if name not in listed:
            yield f"{name}: not part of the artifact"
        elif name not in here:
            yield f"{name}: missing"
        elif line := _difference(here[name], listed[name], hash_file):
            yield line


def _difference(path: Path, sealed: FileEntry, hash_file: Callable[[Path], str]) -> str | None:
    try:
        if (size := path.stat().st_size) != sealed.size:
            return _sizes(sealed.path, size, sealed.size)
        if (found := hash_file(path)) != sealed.sha256:
            return (
                f"{sealed.path}: other bytes than when it was sealed"
                f" (sha256:{found[:SHORT]}…, it was sha256:{sealed.sha256[:SHORT]}…)"
            )
    except OSError as error:  # a disk that can no longer read it
        return f"{sealed.path}: {error.strerror}"
    return None


def _sizes(name: str, now: int, then: int) -> str:
    return f"{name}: {now} bytes, {then} when it was sealed"


def repeats(stage: str, params: Mapping[str, Any]) -> bool:
    """Tell whether a stage's key decides its bits: what an endpoint answers is another machine's, and need not."""
    return stage != "responses" or "endpoint" not in params.get("data", {}).get("responses", {})
