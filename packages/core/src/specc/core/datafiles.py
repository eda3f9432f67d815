"""The files of a data source: which formats there are, which files a locked source names, and where they come from."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from specc.core.images import SUFFIXES
from specc.core.references import placed

FORMATS: Final[Mapping[str, str]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Formats by suffix. A `json` file is a list of rows, or one row a line; `txt` has a prompt a line."""
COMPRESSIONS: Final = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes behind those of text formats; Parquet and Arrow compress inside."""
TABLES: Final = ("parquet", "arrow")
FROM: Final = ("file", "dataset", "url", "preset")
"""Keys of which a source has one: what says where its rows are."""
KNOWN: Final = (
    "`.jsonl`, `.json`, `.csv`, `.tsv` or `.txt`, each also with `.gz`, `.bz2`, `.xz` or `.zst`; `.parquet`, `.arrow`"
)
_WILD: Final = re.compile(r"[*?\[]")
_TOKENS: Final = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])")

Item = Mapping[str, Any]
"""A source of the resolved spec: what the spec says of it, and what the lock pins."""


class Format(NamedTuple):
    """How a file is read: one of `FORMATS`, and the suffix of its compression, empty if there is none."""

    name: str
    compression: str = ""


def format_of(name: str) -> Format | None:
    """Return how the file of a name is read, None if its suffixes do not say."""
    first, *rest = [suffix.lower() for suffix in reversed(PurePosixPath(name).suffixes)] or [""]
    if first in COMPRESSIONS and rest and (found := FORMATS.get(rest[0])) is not None and found not in TABLES:
        return Format(found, first)
    return Format(FORMATS[first]) if first in FORMATS else None


def local_format(name: str) -> Format:
    """Return how a file is read that a spec names by itself: as JSON lines where its suffix says nothing."""
    return format_of(name) or Format("jsonl")


def is_pattern(name: str) -> bool:
    """Tell whether a path has wildcards."""
    return _WILD.search(name) is not None


def matches(pattern: str, path: str) -> bool:
    """Tell whether a posix path fits a pattern in which `*` and `?` stay in a folder and `**` goes through folders.

    It takes time polynomial in both: patterns also come from data sets' cards.
    """
    tokens = [token for token in _TOKENS.split(pattern) if token]

    @cache
    def fits(index: int, start: int) -> bool:
        if index == len(tokens):
            return start == len(path)
        token, rest = tokens[index], path[start:]
        ends: Sequence[int]
        match token:
            case "**/":
                ends = [start, *(start + at + 1 for at, letter in enumerate(rest) if letter == "/")]
            case "**":
                ends = range(start, len(path) + 1)
            case "*":
                ends = range(start, start + len(rest.partition("/")[0]) + 1)
            case "?":
                ends = [start + 1] if rest and rest[0] != "/" else []
            case _ if token[0] == "[" and len(token) > 2:
                ends = [start + 1] if rest and fnmatchcase(rest[0], token) else []
            case _:
                ends = [start + len(token)] if rest.startswith(token) else []
        return any(fits(index + 1, end) for end in ends)

    return fits(0, 0)


def label(item: Item) -> str:
    """Return what a source is called where a person reads it: its path, hub id, address or preset."""
    return str(next(item[key] for key in FROM if item.get(key) is not None))


def files_of(item: Item) -> dict[str, str]:
    """Return the files of a locked source with their sha256, in the order in which they are read: sorted by name."""
    if "files" in item:
        return dict(sorted(item["files"].items()))
    name = next(item[key] for key in ("file", "path", "url") if key in item)
    return {str(name): item.get("sha256", "")}


def local_files(item: Item) -> dict[str, str]:
    """Return those files of a locked source that are on the user's disk, none for a hub's and an address."""
    return files_of(item) if "file" in item else {}


def local_images(item: Item) -> dict[str, str]:
    """Return the images of a locked source that are on the user's disk, with their sha256."""
    return dict(item.get("image_files", {}))


def image_places(folder: str, base: Path) -> dict[str, Path]:
    """Return the images of a folder, also below it, each by its own path, sorted; hidden ones do not count."""
    place = placed(folder, base)
    inside = (path.relative_to(place) for path in place.rglob("*")
              if path.suffix.lower() in SUFFIXES and path.is_file())  # fmt: skip
    names = (one.as_posix() for one in inside if not any(part.startswith(".") for part in one.parts))
    return {posixpath.normpath(posixpath.join(folder, name)): place / name for name in sorted(names)}


def local_places(name: str, base: Path) -> dict[str, Path]:
    """Return the files that a path means, each by its own path, sorted: one, or those of a folder or a pattern.

    Files of a folder count, also below it, if they are not hidden and their suffix says a format. A pattern takes all
    that fit.
    """
    place = placed(name, base)
    if place.is_file():
        return {name: place}
    if place.is_dir():
        inside = [path.relative_to(place) for path in place.rglob("*") if path.is_file() and format_of(path.name)]
        names = [posixpath.join(name, path.as_posix()) for path in inside if not any(
            part.startswith(".") for part in path.parts)]  # fmt: skip
    else:
        names = glob.glob(name, root_dir=base, recursive=True) if is_pattern(name) else []  # noqa: PTH207 - of names relative to a folder
    found = {posixpath.normpath(one): base / one for one in names}
    return {one: place for one, place in sorted(found.items()) if place.is_file()}


def items_of(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Yield every source of a tree of values with its path in the spec: training, validation, prompts."""
    if not values:
        return
    data, evaluate = values["data"], values.get("evaluate")
    places = {
        ("data", "sources"): data["sources"],
        ("data", "validation"): data["validation"]["sources"],
        ("evaluate", "prompts"): evaluate["prompts"] if evaluate is not None else (),
    }
    for path, items in places.items():
        for index, item in enumerate(items):
            yield (*path, index), item
