"""Where a spec's store is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MARKS: Final = (".specc", ".git", "pyproject.toml")
"""Any of these in a folder makes it a project's root."""


def project_root(spec: Path) -> Path:
    """Return the nearest ancestor of the spec's folder (itself included) that is a project's root, else that folder."""
    folder = absolute(spec).parent
    for ancestor in (folder, *folder.parents):
        if any((ancestor / mark).exists() for mark in MARKS):
            return ancestor
    return folder


def store_root(spec: Path, configured: str | None) -> Path:
    """Return the folder of the spec's store: `SPECC_STORE`, else the spec's `runtime.store`, else the project's."""
    if chosen := os.environ.get("SPECC_STORE"):
        return absolute(Path(chosen).expanduser())
    if configured:
        return absolute(absolute(spec).parent / Path(configured).expanduser())
    return project_root(spec) / ".specc" / "store"


def absolute(path: Path) -> Path:
    """Return a path from the root without `..`, keeping symbolic links as the user wrote them."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow links
