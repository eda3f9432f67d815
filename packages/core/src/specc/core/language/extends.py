"""`extends`: a spec that goes on from another one, read as one document whose values stay where they are written."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from specc.core.errors import SpeccError
from specc.core.language.document import Document
from specc.core.language.node import Fields, KeyPath, Node
from specc.core.language.paths import named_places, path_error
from specc.core.language.schema import Tagged, published_schema, tagged_unions
from specc.core.references import PACKAGE, is_hub_id, joined, package_file

EXTENDS: Final = "extends"
_STORE: Final = ((("runtime", "store"), "folder"),)
LONGEST: Final = 16
"""Specs in a row, each of which extends the next one."""


def merge(document: Document, path: Path) -> Document:
    """Return a document, which is that of `path`, with all that it extends; raises `SpeccError` if that cannot be read.

    Mappings are merged, the spec's own values before those of what it extends; lists and scalars are replaced whole.
    A path is relative to the file that it stands in; in the result all are relative to the folder of `path`, or name
    files of packages.
    """
    whole = _whole(document, path.parent, path.name, ())
    return document if whole is document.root else Document(document.name, whole)


def chain(name: str, read: Callable[[str], str]) -> dict[str, Document]:
    """Return a spec and those that it goes on from by their paths, but for files of packages; `read` gives a text."""
    found: dict[str, Document] = {}
    while name not in found:
        found[name] = Document.parse(read(name), name)
        base = found[name].data.get(EXTENDS)
        if isinstance(base, str) and not base.startswith(PACKAGE):
            name = joined(posixpath.dirname(name), base)
    return found


def _whole(document: Document, folder: Path, name: str, seen: tuple[str, ...]) -> Node:
    """Return the root of a document, merged with what it extends.

    `folder` is that of the first spec. `name` is where this one is from there: a path, or a package's file.
    """
    here = posixpath.dirname(name)
    own = _moved(document, folder, here) if seen else document.root
    entry = document.root.at((EXTENDS,))
    if entry is None or not isinstance(entry.value, str) or not entry.value:
        return own  # what is no name is for the schema to say
    if (error := path_error(document, (EXTENDS,))) is not None:
        raise error
    base, seen = joined(here, entry.value), (*seen, _identity(folder, name))
    circle = _identity(folder, base) in seen
    if circle or len(seen) == LONGEST:
        what = "this goes round in a circle" if circle else f"a spec goes on from at most {LONGEST - 1} others"
        raise document.error(what, (EXTENDS,), id="E0009", hint="name another spec, or remove the line")
    below = _whole(_read(document, base, folder), folder, base, seen)
    return _over(below, own.without(EXTENDS), tagged_unions(published_schema()))


def _identity(folder: Path, name: str) -> str:
    """Return what two names of one file have in common."""
    return name if name.startswith(PACKAGE) else os.path.realpath(folder / name)


def _read(document: Document, name: str, folder: Path) -> Document:
    """Read what a document extends; raises `SpeccError` at its `extends` if that is not there."""
    try:
        path = package_file(name) if name.startswith(PACKAGE) else Path(os.path.normpath(folder / name))
    except SpeccError as error:
        raise document.error(error.message, (EXTENDS,), hint=error.hint, id="E0009") from error
    if path is None or not path.is_file():
        package = name.removeprefix(PACKAGE).split("/")[0] if path is None else None
        hint = f"`pip install {package}` brings it" if package else "paths are relative to the file that they stand in"
        raise document.error(f"there is no spec `{document.data[EXTENDS]}`", (EXTENDS,), id="E0009", hint=hint)
    return Document.read(path, name if name.startswith(PACKAGE) else None)


def _moved(document: Document, folder: Path, here: str) -> Node:
    """Return the root of a document with all its paths as they are from the folder of the first spec."""
    root = document.root
    for place, kind in (*named_places(document.data), *_STORE):
        node = root.at(place)
        if node is None or not isinstance(node.value, str) or path_error(document, place):
            continue
        value, moved = node.value, joined(here, node.value)
        if kind in ("model", "source"):
            if is_hub_id(value) and not (folder / moved).exists():
                continue
            moved = moved if moved.startswith((PACKAGE, "../")) else f"./{moved}"
        root = root.put(place, replace(node, value=moved))
    return root


def _over(below: Node, own: Node, tagged: Mapping[KeyPath, Tagged], path: KeyPath = ()) -> Node:
    """Return `own` on top of what it extends."""
    if below.fields is None or own.fields is None:
        return own
    fields = _kept(below.fields, own.fields, tagged[path]) if path in tagged else dict(below.fields)
    for name, (key, node) in own.fields.items():
        fields[name] = (key, _over(fields[name][1], node, tagged, (*path, name)) if name in fields else node)
    return replace(own, fields=fields)


def _kept(below: Fields, own: Fields, tagged: Tagged) -> Fields:
    """Return what is kept of a tagged union where another member is chosen: not what only the first one has."""
    before, after = (fields[tagged.tag][1].value if tagged.tag in fields else None for fields in (below, own))
    was = tagged.members.get(str(before or tagged.default), frozenset())
    now = tagged.members.get(str(after), was)
    return {name: entry for name, entry in below.items() if name not in was - now}
