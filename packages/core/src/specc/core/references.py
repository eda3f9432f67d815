"""What a spec can name: hub ids, files of installed packages (`package:NAME/FILE`), paths. Nothing is imported."""

from __future__ import annotations

import posixpath
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from specc.core.errors import SpeccError

PACKAGE: Final = "package:"
HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(model: str) -> bool:
    """Tell a hub id (`org/name`) from a path: paths start with `./` or `../` or end in `.gguf`."""
    return bool(HUB_ID.fullmatch(model)) and not model.endswith(".gguf")


def joined(folder: str, name: str) -> str:
    """Return what `name` is from where `folder` is relative to: both relative paths, or files of packages."""
    if name.startswith(PACKAGE):
        return name
    prefix = PACKAGE if folder.startswith(PACKAGE) else ""
    return prefix + posixpath.normpath(posixpath.join(folder.removeprefix(PACKAGE), name))


def placed(name: str, base: Path) -> Path:
    """Return where a file is that a spec in the folder `base` names, whether it is there or not.

    Raises `SpeccError` as `package_file` does.
    """
    if not name.startswith(PACKAGE):
        return base / name
    return package_file(name) or base / name  # where there is nothing


@cache
def package_file(reference: str) -> Path | None:
    """Return where the file of a reference is, None if its package is not installed.

    Raises `SpeccError` if the package is here and carries no such file.
    """
    name = reference.removeprefix(PACKAGE)
    package, _, rest = name.partition("/")
    inside = not rest.startswith("/") and ".." not in rest.split("/")
    spec = find_spec(package) if inside and package.isidentifier() else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder, rest)).is_file():
            return file
    from importlib import metadata  # which takes a while: a package of another name, or what an error says

    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        owners = metadata.packages_distributions().get(package, [])
        if not owners:
            return None
        distribution = metadata.distribution(owners[0])
    for file in distribution.files or ():
        if file.as_posix() == name:
            return Path(str(file.locate()))
    raise SpeccError(
        f"the package `{package}` carries no file `{name}`",
        hint=f"`pip show --files {package}` lists what it carries",
    )
