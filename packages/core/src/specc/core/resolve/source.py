"""What a lock pins of a draft that is to be converted: its files and its layout; weights are never read for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import tensor_headers
from specc.core.layouts import Layout, assign, detect, layout, section
from specc.core.references import is_hub_id
from specc.core.resolve import hub

FACTS: Final = ("name", "layout", "revision", "files")
"""What is read from a source, as keys beside those that a user may write."""
CONFIG: Final = "config.json"
INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
LEFT_BY_TRAINERS: Final = frozenset({
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth",
})  # fmt: skip
"""Files of transformers' trainer that hold no weights of the model."""
IS: Final = "a source is a folder with `config.json` and weights, or a hub id (`org/name`)"
WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A draft of another repository: its pinned facts, and where its files are.

    `files` is empty for a hub id (the stage downloads them) and for a source that is known from a lock only. `config`
    is its `config.json`, None where the lock alone was asked.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    config: Mapping[str, Any] | None = None

    @property
    def layout(self) -> Layout:
        """Its layout's row."""
        return layout(self.facts["layout"])


def find(
    section: Mapping[str, Any], base: Path, digest: Callable[[Path], str], pinned: Mapping[str, Any] | None
) -> Source:
    """Return the facts of a source; `section` has `convert`, and may have `revision` and `layout`.

    `pinned` is the same of a lock, with the facts. A hub id is taken from it as it is, a folder on this machine is read
    again, and one that is not here is taken from the lock. Raises `SpeccError` for what is no such folder.
    """
    text, revision, asked = section["convert"], section.get("revision"), section.get("layout")
    same = pinned is not None and pinned.get("convert") == text and revision in (
        pinned.get("asked_revision"), pinned["revision"]
    ) and asked in (None, pinned["layout"])  # fmt: skip
    folder = base / text
    if is_hub_id(text) and not folder.exists():
        return Source(facts=_facts(pinned)) if same and pinned else _from_hub(text, revision or "main", asked)
    if not folder.is_dir():
        if same and pinned and not folder.exists():
            return Source(facts=_facts(pinned))
        raise SpeccError(f"there is no folder `{text}`" if not folder.exists() else f"`{text}` is not a folder",
                         hint=IS)  # fmt: skip
    if revision is not None:
        raise SpeccError(f"`{text}` is no hub id, and has no revisions", hint="leave the revision out")
    return _from_folder(folder, asked, digest)


def _facts(pinned: Mapping[str, Any]) -> dict[str, Any]:
    return {key: pinned[key] for key in FACTS}


def _from_folder(folder: Path, asked: str | None, digest: Callable[[Path], str]) -> Source:
    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    here = sorted(path.name for path in folder.iterdir() if path.is_file())
    config, weights, index = _parts(here, read)
    inside = {name: _names(folder / name) for name in weights if name.endswith(".safetensors")}
    names = index.keys() if index else {one for some in inside.values() for one in some} if inside else None
    row = layout(asked) if asked else detect(config, names)
    if inside and row.own is False:  # of a whole verifier, only the files that have some of its head
        weights = [name for name in weights if any(row.ignored(one, {}, {}) is None for one in inside[name])] or weights
    files = {name: folder / name for name in [CONFIG, *weights]}
    pins = {name: digest(path) for name, path in files.items()}
    facts = {"name": folder.resolve().name, "layout": row.name, "revision": None, "files": pins}
    return Source(facts=facts, files=files, config=config)


def _names(path: Path) -> set[str]:
    return {header.name for header in tensor_headers(path)}


def _from_hub(repo: str, revision: str, asked: str | None) -> Source:
    found = hub.model(repo, revision)
    here = sorted(name for name in found.files if "/" not in name)
    config, weights, index = _parts(here, lambda name: hub.fetch(found, name))
    row = layout(asked) if asked else detect(config, index.keys() if index else None)
    if index and row.own is False:
        headed = {file for name, file in index.items() if row.ignored(name, {}, {}) is None}
        weights = [name for name in weights if name in headed] or weights
    pins = hub.pin(found, [CONFIG, *weights])
    facts = {"name": repo, "layout": row.name, "revision": found.commit, "files": pins}
    return Source(facts=facts, config=config)


def _parts(here: list[str], read: Callable[[str], bytes]) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Return a folder's configuration, the files of its weights, and the file of each tensor where an index says it.

    Safetensors go before pickles, of which only PyTorch's own `pytorch_model*.bin` are read. Raises `SpeccError` for
    other files that may hold weights: what they hold would be left out without a word.
    """
    if CONFIG not in here:
        raise SpeccError(f"the source has no `{CONFIG}`", hint=IS)
    config = _json(read(CONFIG), CONFIG)
    plain = [name for name in here if name.endswith(".safetensors")]
    pickled = [name for name in here if name.startswith("pytorch_model") and name.endswith(".bin")]
    chosen = plain or pickled
    other = [name for name in here if name.endswith(WEIGHTS) and name not in {*plain, *pickled, *LEFT_BY_TRAINERS}]
    if other:
        raise SpeccError(f"the source's file `{other[0]}` may hold weights, and no layout has it",
                         hint="remove it if nothing of the draft is in it")  # fmt: skip
    if not chosen:
        raise SpeccError("the source has no weights", hint="they are in `*.safetensors` or in `pytorch_model*.bin`")
    name = INDEXES[0] if plain else INDEXES[1]
    if name not in here:
        if not plain and len(chosen) > 1:
            raise SpeccError(f"the source's weights are in {len(chosen)} files, and there is no `{name}`")
        return config, chosen, {}
    index = _json(read(name), name).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise SpeccError(f"the source's `{name}` has no `weight_map`")
    places: dict[str, str] = index
    if missing := sorted(set(places.values()) - set(chosen)):
        raise SpeccError(f"the source's `{name}` names a file `{missing[0]}` that is not there",
                         hint="download the whole folder")  # fmt: skip
    if extra := sorted(set(chosen) - set(places.values())):
        raise SpeccError(f"the source's file `{extra[0]}` is not in its `{name}`",
                         hint="remove it if nothing of the draft is in it")  # fmt: skip
    return config, chosen, places


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SpeccError(f"the source's `{name}` is not JSON") from error
    if not isinstance(value, dict):
        raise SpeccError(f"the source's `{name}` is not a JSON object")
    return value


def check(source: Source, verifier: Mapping[str, Any]) -> None:
    """Raise `SpeccError` for a source that cannot be converted, as far as its configuration and its headers tell.

    `verifier` is `verifier.config` of the resolved spec. Nothing is known of a source that only a lock or a hub knows.
    """
    if source.config is None:
        return
    draft, config = section(source.layout, source.config, verifier)
    plain = [path for name, path in source.files.items() if name.endswith(".safetensors")]
    if plain:
        shapes = {header.name: header.shape for path in plain for header in tensor_headers(path)}
        assign(source.layout, source.layout.seen(draft, shapes), config, shapes)
