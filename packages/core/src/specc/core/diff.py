"""What a change means: two specs, locks, revisions or artifacts, compared by their resolved values and stages.

Both sides become the same thing, rows of stages with what their keys are made of, so that a comment or the order of
keys is no change, and a spec can be compared with an artifact.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from specc.core import lock as locks
from specc.core.compiler import Compiled, compile_spec
from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.language import Document
from specc.core.language.rules import named_files
from specc.core.lock import Lock, machine_class
from specc.core.plan import Estimate, Plan, estimates, lower
from specc.core.plan.stages import StageRow
from specc.core.store import Store

LOCK: Final = ".lock.json"

Kind = Literal["value", "engine", "version"]
Moved = tuple[Kind, str, Any, Any]
"""What differs: its kind, its path, and both values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a stage's key is made of: its code's version, its values by dotted path, its part of the numerics class.

    `inputs` are the stages that it reads. `reads` tells which values it names, None for an artifact, whose
    `values` are all that is known.
    """

    version: int
    values: Mapping[str, Any]
    facets: Mapping[str, Any]
    inputs: tuple[str, ...]
    reads: StageRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison.

    `lock` is None for an artifact, which knows the values of its own stages alone. `compiled` is there for a spec.
    """

    label: str
    rows: Mapping[str, Row]
    lock: Lock | None = None
    compiled: Compiled | None = None

    def where(self, path: str) -> str | None:
        """Return `label:line` of a value that the user wrote here."""
        place = self.compiled.where(path) if self.compiled else None
        return f"{self.label}:{place.rpartition(':')[2]}" if place else None


@dataclass(frozen=True, slots=True)
class Difference:
    """A value, an engine or a stage's code that differs; None where it is absent. `stages` are those that name it."""

    kind: Kind
    path: str
    before: Any
    after: Any
    where: str | None
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A stage that the second side builds anew: for what differs in its own key, or because of its inputs alone.

    `estimate` is what it takes on this machine, None where nobody can know.
    """

    stage: str
    why: Literal["new", "changed", "input"]
    inputs: tuple[str, ...]
    estimate: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs between two sides, in the order of paths and of stages; `dropped` are stages of the first alone."""

    before: str
    after: str
    differences: tuple[Difference, ...]
    rebuilt: tuple[Rebuilt, ...]
    dropped: tuple[str, ...]
    stages: int


def compare(before: Side, after: Side) -> Comparison:
    """Compare two sides; an artifact and a spec are compared over the stages that made the artifact."""
    common = {name for name in after.rows if name in before.rows}
    whole = before.lock is not None and after.lock is not None
    found = _locked(before.lock, after.lock) if before.lock and after.lock else _of_rows(before, after, common)
    differences = tuple(
        Difference(kind, path, old, new, after.where(path), _readers(before, after, kind, path))
        for kind, path, old, new in found
    )
    rebuilt: dict[str, Rebuilt] = {}
    costs = _costs(after)
    for name, row in after.rows.items():
        if name not in common and not whole:
            continue
        moved = tuple(stage for stage in row.inputs if stage in rebuilt)
        why = "new" if name not in common else "changed" if _changed(before.rows[name], row) else "input"
        if why != "input" or moved:
            rebuilt[name] = Rebuilt(name, why, moved, costs.get(name))
    dropped = tuple(name for name in before.rows if name not in after.rows) if whole else ()
    return Comparison(before=before.label, after=after.label, differences=differences, rebuilt=tuple(rebuilt.values()),
                      dropped=dropped, stages=len(after.rows))  # fmt: skip


def side(target: str) -> Side:
    """Return the side that a person names: a spec, a lock, `REVISION:path` of either, or the start of an artifact's id.

    Raises `SpeccError` for what is none of these, and for what is wrong with it. Only a revision starts a process, git.
    """
    path = Path(target)
    if path.is_file():
        return _of_lock(path, target) if target.endswith(LOCK) else _of_spec(path, target)
    if ":" in target:
        return _of_revision(target)
    if target.endswith((".yaml", ".yml", LOCK)):
        raise SpeccError(
            f"there is no file `{target}`", hint="give a spec, a lock, `REVISION:path` or an artifact's id"
        )
    return _of_artifact(Store.locate(Path.cwd() / "spec.yaml"), target)


def _of_spec(path: Path, label: str) -> Side:
    compiled = compile_spec(path)
    return Side(label=label, rows=_rows(compiled.plan(), compiled.lock), lock=compiled.lock, compiled=compiled)


def _of_lock(path: Path, label: str) -> Side:
    lock = locks.read(path)
    if lock is None:
        raise SpeccError("the lock holds conflict markers", where=label, hint="`specc lock SPEC` writes it anew")
    try:
        plan = lower(lock.locked.values, machine_class(lock.locked.machine, lock.locked.engines))
    except (KeyError, TypeError) as error:
        raise SpeccError(
            "the lock is of a release whose values this one does not understand",
            where=label,
            hint="compare the specs, or lock it anew: `specc lock --upgrade defaults SPEC`",
        ) from error
    return Side(label=label, rows=_rows(plan, lock), lock=lock)


def _rows(plan: Plan, lock: Lock) -> dict[str, Row]:
    """Return the rows of a plan; a stage's code is of the version that the lock says."""
    return {
        stage.name: Row(
            version=lock.locked.stages.get(stage.name, stage.row.version),
            values=locks.flat(stage.row.params),
            facets=stage.facets,
            inputs=tuple(stage.row.inputs.values()),
            reads=stage.row,
        )
        for stage in plan.stages
    }


def _of_artifact(store: Store, target: str) -> Side:
    """Return an artifact and those that it was made of, as far as the store still has how they came about."""
    first = store.manifest(store.resolve(target))
    rows: dict[str, Row] = {}
    waiting = [first]
    while waiting:
        manifest = waiting.pop()
        parents = _parents(store, manifest, first)
        rows[manifest.stage] = Row(
            version=manifest.version,
            values=locks.flat({name: value for name, value in manifest.params.items() if name != "stages"}),
            facets=manifest.facets,
            inputs=tuple(parent.stage for parent in parents),
        )
        waiting += [parent for parent in parents if parent.stage not in rows]
    return Side(label=f"{first.stage} {first.digest[:12]}", rows=rows)


def _parents(store: Store, manifest: Manifest, first: Manifest) -> list[Manifest]:
    """Return how an artifact's inputs came about: by the keys that the first one wrote down, if it did."""
    keys = {name: item["key"] for name, item in first.params.get("stages", {}).items()}
    found: list[Manifest] = []
    for digest in manifest.inputs.values():
        try:
            parent = store.manifest(digest)
            found.append(store.manifest(digest, keys.get(parent.stage)))
        except SpeccError:  # it is no longer in the store
            continue
    return found


def _of_revision(target: str) -> Side:
    """Return a spec or a lock as it is in a revision of the repository that the working directory is in."""
    revision, name = target.split(":", 1)
    git = shutil.which("git")
    if git is None:
        raise SpeccError(f"`{target}` is a revision, and there is no git here", hint="install git, or give two files")
    if revision.startswith("-") or not revision:
        raise SpeccError(f"`{revision}` is not a revision", hint="give `REVISION:path`, such as `main:specs/my.yaml`")

    def run(*arguments: str) -> bytes:
        done = subprocess.run([git, *arguments], capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise SpeccError(f"git cannot read `{target}`: {said[0] if said else 'it failed'}",
                             hint="give `REVISION:path`, the path from the repository's root")  # fmt: skip
        return done.stdout

    top = run("rev-parse", "--show-toplevel").decode().strip()
    text = run("-C", top, "show", f"{revision}:{name}").decode(errors="replace")
    with TemporaryDirectory() as folder:
        if name.endswith(LOCK):
            path = Path(folder) / Path(name).name
            path.write_text(text)
            return _of_lock(path, target)
        document = Document.parse(text, target)
        wanted = _files(document, name)
        listed = run("-C", top, "ls-tree", "-r", "-z", "--name-only", revision, "--", *wanted).decode().split("\0")
        tar = run("-C", top, "archive", "--format=tar", revision, "--", *filter(None, listed))
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            archive.extractall(folder, filter="data")
        return _of_spec(Path(folder) / name, target)


def _files(document: Document, name: str) -> list[str]:
    """Return the paths from the repository's root of a spec, its lock, and what it names beside it."""
    base = Path(name).parent
    verifier: Any = document.data.get("verifier")
    model: Any = verifier.get("model") if isinstance(verifier, dict) else None
    draft: Any = document.data.get("draft")
    init: Any = draft.get("init") if isinstance(draft, dict) else None
    folders = [one for one in (model, init.get("from") if isinstance(init, dict) else None) if isinstance(one, str)]
    beside = [(base / one).as_posix() for one in (*named_files(document), *folders) if ":" not in one]
    return [name, locks.lock_path(Path(name)).as_posix(), *(one for one in beside if ".." not in Path(one).parts)]


def _locked(old: Lock, new: Lock) -> list[Moved]:
    """Return what differs between two locks; of the engines, those of the classes that both were made for."""
    found: list[Moved] = []
    classes = {old.locked.machine, new.locked.machine}
    for moved in locks.compare(replace(old.locked, written={}), replace(new.locked, written={})):
        head, _, rest = moved.path.partition(".")
        if head == "stages":
            found.append(("version", rest, moved.lock, moved.spec))
        elif head != "engines":
            found.append(("value", moved.path, moved.lock, moved.spec))
        elif rest.partition(".")[0] in classes:
            found.append(("engine", rest, moved.lock, moved.spec))
    return found


def _of_rows(before: Side, after: Side, common: set[str]) -> list[Moved]:
    """Return what differs in the keys of the stages that both sides have, each once."""
    found: dict[tuple[Kind, str], tuple[Any, Any]] = {}
    for name in common:
        old, new = before.rows[name], after.rows[name]
        if old.version != new.version:
            found["version", name] = (old.version, new.version)
        tables: tuple[tuple[Kind, Mapping[str, Any], Mapping[str, Any]], ...] = (
            ("value", old.values, new.values), ("engine", old.facets, new.facets),
        )  # fmt: skip
        for kind, one, other in tables:
            for path in {*one, *other}:
                if one.get(path) != other.get(path):
                    found[kind, path] = (one.get(path), other.get(path))
    order = ("value", "version", "engine")
    return [
        (kind, path, *found[kind, path]) for kind, path in sorted(found, key=lambda one: (order.index(one[0]), one[1]))
    ]


def _readers(before: Side, after: Side, kind: str, path: str) -> tuple[str, ...]:
    """Return the stages of either side whose keys name what differs."""
    if kind == "version":
        return (path,)
    last = path.rpartition(".")[2]
    found: list[str] = []
    for name, row in {**before.rows, **after.rows}.items():
        named = row.reads.reads(path) if row.reads else path in row.values
        if last in row.facets if kind == "engine" else named:
            found.append(name)
    return tuple(found)


def _changed(old: Row, new: Row) -> bool:
    """Tell whether a stage's own part of its key differs."""
    same = old.version == new.version and old.values == new.values and dict(old.facets) == dict(new.facets)
    return not same or set(old.inputs) != set(new.inputs)


def _costs(after: Side) -> dict[str, Estimate]:
    """Return what the stages of the second side take, where it is a spec or a lock."""
    if after.lock is None:
        return {}
    if after.compiled is not None:
        return after.compiled.estimates()
    locked = after.lock.locked
    return estimates(locked.values, machine_class(locked.machine, locked.engines), None)
