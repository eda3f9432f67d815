"""The paths that a spec names: where they stand in it, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final

from specc.core.datafiles import KNOWN, is_pattern, local_places
from specc.core.errors import SpeccError
from specc.core.language.earlier import init_error
from specc.core.language.rows import row_error
from specc.core.language.text import printable
from specc.core.references import PACKAGE, is_hub_id, placed

if TYPE_CHECKING:
    from specc.core.language.document import Document
    from specc.core.language.node import KeyPath

Values = Mapping[str, Any]
PROJECT: Final = (".git", "pyproject.toml")
"""What the root of a project has."""
LOOKS: Final[Mapping[str, Callable[[Document, KeyPath, Path], SpeccError | None]]] = {
    "file": row_error,
    "folder": init_error,
    "source": lambda document, path, folder: None,
    "images": lambda document, path, folder: None,
}
"""What looks into a file or a folder that a document names, by the kind of the place."""


def check_paths(document: Document, *, exist: bool) -> list[SpeccError]:
    """Return what is wrong with the paths that a document names, even if the rest of it is not valid yet.

    With `exist`, files and folders that are not there are errors too.
    """
    base = Path(document.name).parent
    return [
        error
        for path, kind in named_places(document.data)
        if (error := path_error(document, path) or (_absent(document, base, path, kind) if exist else None)) is not None
    ]


def named_files(document: Document) -> list[str]:
    """Return the files of data that a document names, each once."""
    names = [_get(document.data, path) for path, kind in named_places(document.data) if kind == "file"]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def path_error(document: Document, path: KeyPath) -> SpeccError | None:
    """Return what is wrong with a path that stands in a document, whether there is something or not."""
    name = _get(document.data, path)
    if isinstance(name, str) and (name.startswith(("/", "~", "file:")) or PureWindowsPath(name).drive):
        return document.error(f"`{printable(name)}` is an absolute path", path, id="E0215",
                              hint="name it relative to the spec, so that it holds on other machines")  # fmt: skip
    if isinstance(name, str) and not name.startswith(PACKAGE) and _is_outside(name, document.name):
        return document.error(f"`{printable(name)}` is outside the project", path, id="E0224",
                              hint="move it into the project, or link to it from there")  # fmt: skip
    return None


def _is_outside(name: str, file: str) -> bool:
    """Tell whether a path that stands in `file` climbs out of its project; by names alone, so that a link is inside.

    A project is the nearest folder above that has `.git` or `pyproject.toml`; without one there is no outside.
    """
    folder = Path(os.path.abspath(file)).parent  # noqa: PTH100 - `resolve` would follow links
    roots = (one for one in (folder, *folder.parents) if any((one / sign).exists() for sign in PROJECT))
    root = next(roots, None)
    return root is not None and not Path(os.path.normpath(folder / name)).is_relative_to(root)


def _absent(document: Document, base: Path, path: KeyPath, kind: str) -> SpeccError | None:
    """Return the error for a file or a folder that a document names and that is not there, or of no use."""
    name = _get(document.data, path)
    if not isinstance(name, str) or not name or kind == "model" or (kind == "source" and is_hub_id(name)):
        return None
    found = base
    try:
        if kind == "file" and path[0] == "data" and (places := local_places(name, base)):
            return LOOKS[kind](document, path, next(iter(places.values())))
        found = placed(name, base)
        there = found.is_file() if kind == "file" else found.is_dir()
        other = found.exists()
    except SpeccError as error:
        return document.error(error.message, path, id="E0214", hint=error.hint)
    except (OSError, ValueError):  # a name that no file system takes
        there = other = False
    if there:
        return LOOKS[kind](document, path, found)
    what = "folder" if kind != "file" else "file that fits" if is_pattern(name) else "file"
    if other and path[0] == "data" and kind == "file":
        return document.error(f"the folder `{printable(name)}` has no file of a format that is read", path, id="E0214",
                              hint=f"read are {KNOWN}")  # fmt: skip
    message = f"`{printable(name)}` is not a {what}" if other else f"there is no {what} `{printable(name)}`"
    return document.error(message, path, id="E0214", hint="paths are relative to the spec")


def named_places(data: Values) -> Iterator[tuple[KeyPath, str]]:
    """Yield the places of a document, valid or not, that name a file, a folder, a model or a source to convert."""
    yield ("verifier", "model"), "model"
    yield ("draft", "init", "from"), "folder"
    yield ("draft", "init", "convert"), "source"
    for place in (("data", "sources"), ("data", "validation"), ("evaluate", "prompts")):
        items = _get(data, place)
        for index in range(len(items) if isinstance(items, list) else 0):
            if _get(items, (index, "dataset")) is None:
                yield (*place, index, "file"), "file"
                yield (*place, index, "images"), "images"


def _get(data: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data
