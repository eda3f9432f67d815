"""The spec with every default and every derived value filled in, each with its origin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.algorithms import algorithm
from specc.core.algorithms.base import Derived
from specc.core.errors import SpeccError, SpeccErrors
from specc.core.files import flatten
from specc.core.language import Checked, rules_with_facts
from specc.core.language.models import LONGEST_SEQUENCE
from specc.core.resolve.verifier import Verifier, find

LANGUAGE: Final = 1
INIT_FILES: Final = ("config.json", "model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSpec:
    """What the compiler knows after `resolve`.

    `values` is the whole tree, plain JSON. `origins` says of each dotted path where its value is from:
    `spec.yaml:14:3`, `default (language v1)` or `derived from …`. `files` maps the logical names of files outside
    the store to their places here; a file that only the lock knows is missing from it.
    """

    values: Mapping[str, Any]
    written: Mapping[str, Any]
    origins: Mapping[str, str]
    files: Mapping[str, Path]


def resolve(
    checked: Checked,
    *,
    base: Path,
    digest: Callable[[Path], str],
    date: str,
    locked: Mapping[str, Any] | None = None,
) -> ResolvedSpec:
    """Resolve a checked spec, with the values of a lock where the spec leaves them to us.

    `locked` is the part `locked` of an earlier lock: its verifier pins, its date and the defaults of its time are
    kept, so that neither a release that changes a default nor a moved branch changes a locked build. Where the
    spec and its files say the same as then, all values are the lock's own.
    """
    spec = checked.spec.values()
    written = written_values(checked, spec)
    pinned: Mapping[str, Any] | None = locked["values"] if locked else None
    verifier = find(spec["verifier"], base, digest, pinned["verifier"] if pinned else None)
    tree, files = _pin_files(spec, base, digest, pinned, checked)
    tree["verifier"] = {**tree["verifier"], **verifier.facts}
    if spec["verifier"]["revision"] is not None:
        tree["verifier"]["asked_revision"] = spec["verifier"]["revision"]
    tree["date"] = pinned["date"] if pinned else date
    files |= {f"verifier/{name}": path for name, path in verifier.files.items()}

    if errors := rules_with_facts(checked, verifier.facts["config"]):
        raise SpeccErrors(errors)
    derived = _derived(tree)
    unchanged = locked is not None and locked["written"] == written and pinned is not None and (
        _pins(pinned) == _pins(tree)
    )  # fmt: skip
    origins: dict[str, str] = {}
    for path, value in flatten(tree).items():
        if path in written or _under(path, written):
            origins[path] = str(checked.document.position(_parts(path)))
        elif path in derived:
            origins[path] = derived[path].origin
        elif path.startswith("verifier.") and path.split(".")[1] in verifier.facts:
            origins[path] = f"read from the verifier `{spec['verifier']['model']}`"
        elif path == "date":
            origins[path] = "the day of the first lock"
        else:
            origins[path] = f"default (language v{LANGUAGE})"
            kept = locked is not None and path not in locked["written"] and not _under(path, locked["written"])
            locked_value = _get(pinned, path) if kept else _ABSENT
            _set(tree, path, value if locked_value is _ABSENT else locked_value)
    for path, item in _derived(tree).items():
        if _get(tree, path) in (None, "full"):
            _set(tree, path, item.value)
            origins[path] = item.origin
    if unchanged and pinned is not None:
        tree = copy.deepcopy(dict(pinned))
    return ResolvedSpec(values=tree, written=written, origins=origins, files=files)


def written_values(checked: Checked, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the user wrote, flattened, in the normal form of the models (`loss: kl` is `{kl: 1.0}`)."""
    paths = checked.document.written()
    flat = flatten(spec)
    return {path: value for path, value in flat.items() if path in paths or _under(path, paths)}


def _derived(tree: Mapping[str, Any]) -> dict[str, Derived]:
    config = tree["verifier"]["config"]
    length = min(LONGEST_SEQUENCE, config["max_position_embeddings"])
    return {
        **algorithm(tree["draft"]["algorithm"]).derive(tree["draft"], config),
        "data.sequence_length": Derived(length, "derived from verifier.config.max_position_embeddings"),
    }


def _pin_files(
    spec: Mapping[str, Any],
    base: Path,
    digest: Callable[[Path], str],
    pinned: Mapping[str, Any] | None,
    checked: Checked,
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the tree with a sha256 beside every file that the spec names, and where the files are."""
    tree, files = copy.deepcopy(dict(spec)), dict[str, Path]()
    known = {item["file"]: item["sha256"] for _, item in _file_items(pinned)} if pinned else {}
    for path, item in _file_items(tree):
        name = item["file"]
        place = base / name
        if place.is_file():
            item["sha256"] = digest(place)
            files[name] = place
        elif name in known:
            item["sha256"] = known[name]
        else:
            raise checked.document.error(f"there is no file `{name}`", (*path, "file"),
                                         hint="paths are relative to the spec")  # fmt: skip
    init = tree["draft"].get("init")
    if init is not None:
        folder = base / init["from"]
        places = {name: folder / name for name in INIT_FILES}
        if all(place.is_file() for place in places.values()):
            init["files"] = {name: digest(place) for name, place in places.items()}
            files |= {f"init/{name}": place for name, place in places.items()}
        elif pinned and (pinned["draft"].get("init") or {}).get("from") == init["from"]:
            init["files"] = pinned["draft"]["init"]["files"]
        else:
            raise checked.document.error(
                f"`{init['from']}` is not a folder with `config.json` and `model.safetensors`",
                ("draft", "init", "from"),
            )
    return tree, files


def _file_items(tree: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """Return the places of a tree that name a data file, with their paths."""
    found: list[tuple[tuple[str | int, ...], dict[str, Any]]] = []
    data, evaluate = tree["data"], tree.get("evaluate")
    found += [(("data", "sources", index), item) for index, item in enumerate(data["sources"])]
    found += [(("data", "validation", index), item) for index, item in enumerate(data["validation"]["sources"])]
    if evaluate is not None:
        found += [(("evaluate", "prompts", index), item) for index, item in enumerate(evaluate["prompts"])]
    return found


def _pins(tree: Mapping[str, Any]) -> object:
    """Return what a tree takes from outside the spec: the verifier's and the data's hashes."""
    init = tree["draft"].get("init")
    return [
        [tree["verifier"][key] for key in ("revision", "files", "tokenizer_sha256", "chat_template_sha256")],
        [item["sha256"] for _, item in _file_items(tree)],
        init["files"] if init else None,
    ]


_ABSENT: Final = object()


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def _under(path: str, written: Any) -> bool:
    """Tell whether a parent of `path` was written as one value (`loss: kl` covers `train.loss.kl`)."""
    parts = path.split(".")
    return any(".".join(parts[:end]) in written for end in range(1, len(parts)))


def _get(tree: Mapping[str, Any] | None, path: str) -> Any:
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node: Any = tree
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value


def missing_file(name: str, values: Mapping[str, Any]) -> SpeccError:
    """Return the error for a file that the lock knows and this machine does not have."""
    if name.startswith("verifier/"):
        from specc.core.resolve.sources import absent

        return absent(values["verifier"]["model"])
    return SpeccError(
        f"there is no file `{name}`", hint="paths are relative to the spec; the lock alone cannot build it"
    )


__all__ = ["LANGUAGE", "ResolvedSpec", "Verifier", "missing_file", "resolve", "written_values"]
