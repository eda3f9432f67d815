"""The lock file: everything that a rebuild must take from outside or from defaults, pinned.

It has two parts. `locked` is what was decided: the values that the spec states (`written`), all resolved values,
each stage's version, the class of machine and every class's engines. `results` is what builds found:
`{numerics class: {stage: digest}}`. Nothing in it names a time, a host, a user or an absolute path.

The lock of a spec with a matrix has a third part, `builds`: by the name of a build, what it has in the other two that
not all of them have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import flatten, merged, pretty, write_atomic
from specc.core.lock.engines import CLASSES

VERSION: Final = 1
PLACES: Final = ("runtime.datagen.endpoint", "runtime.datagen.devices", "runtime.train.devices")
"""Values that no lock has: the address of a server, which is another one tomorrow, and what one machine numbers."""
_MARKERS: Final = ("<<<<<<< ", ">>>>>>> ", "=======\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """What was decided."""

    machine: str
    written: Mapping[str, Any]
    values: Mapping[str, Any]
    stages: Mapping[str, int]
    engines: Mapping[str, Mapping[str, str]]


def placeless(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a spec writes, by dotted paths, as a lock has it."""
    return {path: value for path, value in written.items() if path not in PLACES}


def placeless_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of resolved values as a lock has it."""
    runtime = dict(values["runtime"])
    for path in PLACES:
        _, section, field = path.split(".")
        runtime[section] = {name: value for name, value in runtime[section].items() if name != field}
    return {**values, "runtime": runtime}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock file."""

    locked: Locked
    results: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])

    def as_data(self) -> dict[str, Any]:
        """Return both parts as they stand in the file of a spec without a matrix."""
        locked = self.locked
        return {
            "locked": {
                "class": locked.machine,
                "written": locked.written,
                "values": locked.values,
                "stages": locked.stages,
                "engines": locked.engines,
            },
            "results": self.results,
        }


Locks = Mapping[str, Lock]
"""The locks of a spec's builds by their names; a spec without a matrix has one build, whose name is empty."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A value that differs between a lock and a spec: its path, the lock's value and the spec's (None: absent)."""

    path: str
    lock: Any
    spec: Any


def lock_path(spec: Path) -> Path:
    """Return the lock's place: `<spec>.lock.json` beside the spec, without the spec's `.yaml`."""
    return spec.with_name(spec.stem + ".lock.json")


def engines() -> dict[str, dict[str, str]]:
    """Return the engine pins of every class, as this release has them."""
    return {name: dict(row.engines) for name, row in CLASSES.items()}


def read(path: Path) -> Locks | None:
    """Read the locks of a spec's builds; None if there are none, or conflict markers, so that they are written anew.

    Raises `SpeccError` for a lock of another version or one that is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "it cannot be read") from error
    if any(line.startswith(_MARKERS) for line in text.splitlines(keepends=True)):
        return None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(raw, dict) or raw.get("lock") != VERSION:
        found = raw.get("lock") if isinstance(raw, dict) else None
        raise _damaged(path, f"it is of version `{found}`, and this specc reads version {VERSION}")
    try:
        shared = {name: raw[name] for name in ("locked", "results")}
        builds = _mapping(raw["builds"]) if "builds" in raw else {"": {}}
        return {name: _lock(merged(shared, _mapping(own))) for name, own in builds.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"it lacks or garbles {error}") from error


def _lock(raw: Mapping[str, Any]) -> Lock:
    part = _mapping(raw["locked"])
    return Lock(
        locked=Locked(
            machine=str(part["class"]),
            written=_mapping(part["written"]),
            values=_mapping(part["values"]),
            stages={name: int(version) for name, version in _mapping(part["stages"]).items()},
            engines={name: _mapping(row) for name, row in _mapping(part["engines"]).items()},
        ),
        results={name: _mapping(row) for name, row in _mapping(raw["results"]).items()},
    )


def dump(locks: Locks) -> str:
    """Return the file's text: sorted, indented JSON."""
    whole = {name: lock.as_data() for name, lock in locks.items()}
    if set(whole) == {""}:
        return pretty({"lock": VERSION, **whole[""]})
    shared = common(list(whole.values()))
    parts = {name: shared.get(name, {}) for name in ("locked", "results")}
    return pretty({"lock": VERSION, **parts, "builds": {name: rest(own, shared) for name, own in whole.items()}})


def common(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what trees have in common: a value that all have, mappings by what is common in them."""
    first, *others = trees
    found: dict[str, Any] = {}
    for key, value in first.items():
        same = [other[key] for other in others if key in other]
        if len(same) < len(others):
            continue
        if all(other == value for other in same):
            found[key] = value
        elif all(isinstance(other, Mapping) for other in (value, *same)) and (inner := common([value, *same])):
            found[key] = inner
    return found


def rest(tree: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tree has on top of what it shares with others; `merged` is the way back."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in shared:
            found[key] = value
        elif shared[key] != value and (inner := rest(value, shared[key])):
            found[key] = inner
    return found


def write(path: Path, locks: Locks) -> bool:
    """Write the locks of a spec's builds if the text differs from the file's; return whether it did."""
    text = dump(locks)
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    write_atomic(path, text)
    return True


def compare(old: Locked, new: Locked) -> list[Moved]:
    """Return what moved, in the order of the paths: values, then stage versions, then the engines."""
    if old == new:
        return []
    moved = _differences(flat(old.values), flat(new.values))
    moved += _differences(_prefixed("written", old.written), _prefixed("written", new.written)) if not moved else []
    moved += _differences(_prefixed("stages", old.stages), _prefixed("stages", new.stages))
    return moved + _differences(flatten({"engines": old.engines}), flatten({"engines": new.engines}))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Moved]:
    moved = [path for path in sorted({*old, *new}) if (path in old) != (path in new) or old[path] != new[path]]
    sections = {path.rsplit(".", end)[0] for path in moved for end in range(1, path.count(".") + 1)}
    return [Moved(path, old.get(path), new.get(path)) for path in moved if path not in sections]  # null, not a section


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"a.0.b": value}` for a tree: lists of tables are taken apart, so that one hash is one difference."""
    found: dict[str, Any] = {}
    for path, value in flatten(tree, prefix).items():
        tables = isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
        found |= flat({str(index): item for index, item in enumerate(value)}, path) if tables else {path: value}
    return found


def _prefixed(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in tree.items()}


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("a table")
    return value


def _damaged(path: Path, why: str) -> SpeccError:
    return SpeccError(
        f"the lock cannot be used: {why}",
        where=path.name,
        hint="take it back from version control, or delete it and run `specc lock` to write it anew",
    )
