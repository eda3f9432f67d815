"""Manifests and names as they stand in the store's files, and whether a folder is still what its manifest says."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Final

from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.files import FileEntry, directory_digest, entries, pretty, sha256

SHORT: Final = 12
"""Hexadecimal digits of a digest in the name of an artifact's folder and in sentences."""
LONGEST_NAME: Final = 60
DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def dump_manifest(manifest: Manifest) -> str:
    """Return a manifest as sorted JSON."""
    return pretty(asdict(manifest))


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None if it is not there or not readable as one (cut short, of another version)."""
    try:
        raw = json.loads(path.read_bytes())
        raw["files"] = tuple((str(name), int(size), str(digest)) for name, size, digest in raw["files"])
        manifest = Manifest(**raw)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if DIGEST.fullmatch(manifest.digest) else None


def file_name(name: str) -> str:
    """Return `name` as a file's name: itself if it can be one, else what is left of it and a part of its hash."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_NAME]
    return kept if kept and kept == name else f"{kept or 'unnamed'}-{sha256(name.encode(errors='replace'))[:6]}"


def differences(folder: Path, manifest: Manifest) -> list[str]:
    """Hash a folder's files, with no cache, and return in words every difference from a manifest."""
    try:
        here = {entry.path: entry for entry in entries(folder)}
    except SpeccError as error:
        return [f"{error.where}: {error.message}"]
    listed = {path: FileEntry(path, size, digest) for path, size, digest in manifest.files}
    found: list[str] = []
    if directory_digest(listed.values()) != manifest.digest:
        found.append("the manifest lists other files than its digest stands for")
    for path in sorted({*here, *listed}):
        if path not in listed:
            found.append(f"{path}: not part of the artifact")
        elif path not in here:
            found.append(f"{path}: missing")
        elif here[path].size != listed[path].size:
            found.append(f"{path}: {here[path].size} bytes, {listed[path].size} when it was sealed")
        elif here[path].sha256 != listed[path].sha256:
            now, then = here[path].sha256[:SHORT], listed[path].sha256[:SHORT]
            found.append(f"{path}: sha256:{now}…, sha256:{then}… when it was sealed")
    return found
