"""Which files of a data set on a hub make a split, as the data set's card or the names of its files say.

The rules are those of the library `datasets` (https://huggingface.co/docs/hub/datasets-data-files-configuration), with
which a test compares them; code in a data set's repository is not run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final, cast

from specc.core.datafiles import KNOWN, format_of, is_pattern, matches
from specc.core.errors import SpeccError
from specc.core.resolve import hub

CARD: Final = "README.md"
ALONE: Final = ".huggingface.yaml"
SPLIT: Final = "train"
"""The split that is read if the spec names none."""
_WORDS: Final[Mapping[str, str]] = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_NAMED: Final = {name: re.compile(rf"(?:^|[-._ 0-9])(?:{words})(?:[-._ 0-9]|$)") for name, words in _WORDS.items()}
_SHARD: Final = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..*")
_KIN: Final = {"jsonl": "json", "tsv": "csv"}
_OTHER: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json")
"""Names of files that tell of data and are none."""

Splits = Mapping[str, list[str]]


def files_of_split(found: hub.HubRepository, item: Mapping[str, Any]) -> list[str]:
    """Return the files of a data set that a source asks for, in the order in which they are read.

    `item` has `path`, or `split` and perhaps `config`. Raises `SpeccError` that says what there is if nothing fits, and
    for files of a format that is not read.
    """
    every = sorted(name for name in found.files if not _hidden(name))
    if (path := item.get("path")) is not None:
        chosen = _fitting(every, path)
        if not chosen:
            raise SpeccError(f"the data set `{found.repo}` has no file `{path}`", hint=_there(every))
        if odd := next((name for name in chosen if format_of(name) is None), None):
            raise SpeccError(f"`{odd}` of `{found.repo}` is of a format that is not read", hint=f"read are {KNOWN}")
        return chosen
    data = _one_format([name for name in every if format_of(name) and PurePosixPath(name).name not in _OTHER])
    splits = _of_card(found, item.get("config"), data) or _of_names(data)
    if files := splits.get(item["split"]):
        return files
    if not data:
        scripted = any(name.endswith(".py") for name in every)
        raise SpeccError(
            f"the data set `{found.repo}` has no file of a format that is read",
            hint="it is made by code, which is not run; many have a copy: `revision: refs/convert/parquet` and"
            " `path: default/train/*.parquet`" if scripted else f"read are {KNOWN}")  # fmt: skip
    known = ", ".join(f"`{name}`" for name in splits)
    raise SpeccError(f"the data set `{found.repo}` has no split `{item['split']}`",
                     hint=f"its splits are {known}; `path` names files")  # fmt: skip


def examples_of_split(found: hub.HubRepository, item: Mapping[str, Any]) -> int | None:
    """Return the rows that a data set's card states of the split that a source asks for, None if it says nothing.

    `dataset_info` of a card is what the library `datasets` wrote when it made the files; nobody holds it to them, so
    that it is good for an estimate and for nothing else.
    """
    told: Any = _head(found, CARD).get("dataset_info") if "split" in item and CARD in found.files else None
    infos: list[Any] = told if isinstance(told, list) else [told]
    known = {str(info.get("config_name", "default")): info for info in infos if isinstance(info, dict)}
    config = item.get("config")
    info = known.get(config) if config is not None else _default(known)
    splits: Any = (info or {}).get("splits")
    for split in cast("list[Any]", splits if isinstance(splits, list) else []):
        count: Any = split.get("num_examples") if isinstance(split, dict) else None
        if type(count) is int and count > 0 and split.get("name") == item["split"]:
            return count
    return None


def _of_card(found: hub.HubRepository, config: str | None, data: list[str]) -> Splits:
    """Return the splits of a configuration that the data set's card lists, none if it lists no files."""
    listed = _configs(found)
    if not listed:
        if config is not None:
            raise SpeccError(f"the card of `{found.repo}` lists no configurations, and `{config}` was asked for",
                             hint="remove `config`, or name files with `path`")  # fmt: skip
        return {}
    names = {str(entry.get("config_name", "default")): entry for entry in listed}
    chosen = names.get(config) if config is not None else _default(names)
    if chosen is None:
        known = ", ".join(f"`{name}`" for name in names)
        said = f"has no configuration `{config}`" if config else "has several configurations"
        raise SpeccError(f"the data set `{found.repo}` {said}", hint=f"add `config`, one of {known}")
    folder = str(chosen.get("data_dir") or "").strip("/")
    inside = [name for name in data if not folder or name.startswith(f"{folder}/")]
    files = chosen.get("data_files")
    if files is None:
        return _of_names([name.removeprefix(f"{folder}/") for name in inside], f"{folder}/" if folder else "")
    entries = cast("list[Any]", files if isinstance(files, list) else [files])
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (SPLIT, entry)
        for path in cast("list[Any]", paths if isinstance(paths, list) else [paths]):
            whole = f"{folder}/{path}" if folder else str(path)
            splits.setdefault(str(split), []).extend(_fitting(data, whole.removeprefix("./")))
    return {split: list(dict.fromkeys(names)) for split, names in splits.items() if names}


def _configs(found: hub.HubRepository) -> list[dict[str, Any]]:
    """Return the entries of `configs` in the YAML above a data set's card, or in a file of their own."""
    told: Any = None
    for name in (ALONE, CARD):
        if name in found.files and told is None:
            told = _head(found, name).get("configs")
    entries: list[Any] = told if isinstance(told, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _head(found: hub.HubRepository, name: str) -> dict[str, Any]:
    """Return the YAML above a data set's card, or that of a file of its own; empty if it is none."""
    import yaml

    text = hub.fetch(found, name).decode(errors="replace").removeprefix("\ufeff")
    parts = ["", text] if name == ALONE else re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < (2 if name == ALONE else 3) or parts[0].strip():
        return {}
    try:
        head: Any = yaml.safe_load(parts[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise SpeccError(f"`{name}` of `{found.repo}` is not valid YAML", hint="name files with `path`") from error
    return head if isinstance(head, dict) else {}


def _default(configs: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the configuration that is meant if none is named."""
    if len(configs) == 1:
        return next(iter(configs.values()))
    said = [entry for entry in configs.values() if entry.get("default") is True]
    return said[0] if said else configs.get("default")


def _of_names(data: list[str], folder: str = "") -> Splits:
    """Return the splits that the names of files tell: `data/NAME-00000-of-00001.…`, folders, files; or else one."""
    sharded = [(match[1], name) for name in data if (match := _SHARD.fullmatch(name))]
    in_folders = [(split, name) for split, sign in _NAMED.items() for name in data
                  if any(sign.search(part) for part in PurePosixPath(name).parent.parts)]  # fmt: skip
    in_files = [(split, name) for split, sign in _NAMED.items() for name in data
                if sign.search(PurePosixPath(name).name)]  # fmt: skip
    for pairs in (sharded, in_folders, in_files, [(SPLIT, name) for name in data]):
        splits: dict[str, list[str]] = {}
        for split, name in pairs:
            splits.setdefault(split, []).append(folder + name)
        if splits:
            return splits
    return {}


def _fitting(names: list[str], path: str) -> list[str]:
    return [name for name in names if name == path or (is_pattern(path) and matches(path, name))]


def _one_format(names: list[str]) -> list[str]:
    """Return the files of the most frequent kind of format: what lies beside them is something else."""
    kinds = {name: _KIN.get(found.name, found.name) for name in names if (found := format_of(name)) is not None}
    if not kinds:
        return []
    most = Counter(kinds.values()).most_common(1)[0][0]
    return [name for name, kind in kinds.items() if kind == most]


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in name.split("/"))


def _there(names: list[str]) -> str:
    shown = [name for name in names if format_of(name)][:4]
    listed = ", ".join(f"`{name}`" for name in shown)
    return f"it has {listed}{' and others' if len(names) > len(shown) else ''}" if shown else "it has no data files"
