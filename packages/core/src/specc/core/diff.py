"""What a change means: two specs, locks, revisions or artifacts, compared by their resolved values and stages.

Both sides become the same thing, rows of stages with what their keys are made of, so that a comment or the order of
keys is no change, and a spec can be compared with an artifact.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from specc.core import lock as locks
from specc.core.compiler import Compiled, compile_builds, estimates
from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.language import Document
from specc.core.language.extends import chain
from specc.core.language.paths import named_places
from specc.core.lock import Lock, machine_class
from specc.core.plan import Estimate, Estimator, Plan, lower, total
from specc.core.plan.stages import StageRow
from specc.core.references import PACKAGE, joined
from specc.core.store import Store

LOCK: Final = ".lock.json"
_ORDER: Final = ("value", "version", "engine")

Kind = Literal["value", "engine", "version"]
Moved = tuple[Kind, str, Any, Any]
"""What differs: its kind, its path, and both values."""
Sides = Mapping[str, "Side"]
"""The builds of what is compared, by their names; one without a name where there is no matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a stage's key is made of: its code's version, its values by dotted path, its part of the numerics class.

    `inputs` are the stages that it reads. `reads` tells which values it names, None for an artifact, whose
    `values` are all that is known; so is `recipe`.
    """

    version: int
    values: Mapping[str, Any]
    facets: Mapping[str, Any]
    inputs: tuple[str, ...]
    reads: StageRow | None = None
    recipe: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison, or one build of a side that has a matrix.

    `lock` is None for an artifact, which knows the values of its own stages alone. `compiled` is there for a spec.
    """

    label: str
    rows: Mapping[str, Row]
    lock: Lock | None = None
    compiled: Compiled | None = None

    def where(self, path: str) -> str | None:
        """Return `file:line` of a value that the user wrote here; files are called as the label calls the spec's."""
        place = self.compiled.where(path) if self.compiled else None
        if place is None or self.compiled is None:
            return None
        file, _, line = place.rpartition(":")
        if file.startswith(PACKAGE):
            return place
        revision, colon, name = self.label.rpartition(":")
        beside = os.path.relpath(file, self.compiled.path.parent)
        return f"{revision}{colon}{joined(posixpath.dirname(name), beside)}:{line}"


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

    `count` is how many different ones of it the builds of a matrix have. `estimate` is what they take on this machine,
    None where nobody can know.
    """

    stage: str
    why: Literal["new", "changed", "input"]
    inputs: tuple[str, ...]
    estimate: Estimate | None
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs between two sides, in the order of paths and of stages.

    `dropped` are stages of the first alone, `added` and `removed` builds of a matrix. `stages` counts those of the
    second, what its builds share once.
    """

    before: str
    after: str
    differences: tuple[Difference, ...]
    rebuilt: tuple[Rebuilt, ...]
    dropped: tuple[str, ...]
    stages: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def compare(before: Sides, after: Sides) -> Comparison:
    """Compare two sides build by build; one without a matrix stands for a build that the other side has.

    An artifact and a spec are compared over the stages that made the artifact.
    """
    alone = next(iter(before.values())) if set(before) == {""} or set(after) == {""} else None
    known = {row.recipe for one in before.values() for row in one.rows.values()}
    differences: dict[str, Difference] = {}
    rebuilt: dict[tuple[str, str], Rebuilt] = {}
    dropped: dict[str, None] = {}
    costs = _costs(after)
    for name, one in after.items():
        other = before.get(name, alone)
        found = _one(other, one) if other else _new(one, known)
        differences |= {repr(item): item for item in found.differences}
        for item in found.rebuilt:
            recipe = one.rows[item.stage].recipe
            rebuilt.setdefault((item.stage, recipe or name), replace(item, estimate=costs.get(recipe)))
        dropped |= dict.fromkeys(found.dropped)
    first, second = next(iter(before.values())), next(iter(after.values()))
    return Comparison(
        before=first.label,
        after=second.label,
        differences=tuple(sorted(differences.values(), key=lambda item: (_ORDER.index(item.kind), item.path))),
        rebuilt=_counted(rebuilt.values()),
        dropped=tuple(name for name in dropped if not any(name in one.rows for one in after.values())),
        stages=len({(stage, row.recipe) for one in after.values() for stage, row in one.rows.items()}),
        added=tuple(name for name in after if name not in before and name),
        removed=tuple(name for name in before if name not in after and name),
    )


def _one(before: Side, after: Side) -> Comparison:
    """Compare two builds."""
    common = {name for name in after.rows if name in before.rows}
    whole = before.lock is not None and after.lock is not None
    found = _locked(before.lock, after.lock) if before.lock and after.lock else _of_rows(before, after, common)
    differences = tuple(
        Difference(kind, path, old, new, after.where(path), _readers(before, after, kind, path))
        for kind, path, old, new in found
    )
    rebuilt: dict[str, Rebuilt] = {}
    for name, row in after.rows.items():
        if name not in common and not whole:
            continue
        moved = tuple(stage for stage in row.inputs if stage in rebuilt)
        why = "new" if name not in common else "changed" if _changed(before.rows[name], row) else "input"
        if why != "input" or moved:
            rebuilt[name] = Rebuilt(name, why, moved, None)
    dropped = tuple(name for name in before.rows if name not in after.rows) if whole else ()
    return Comparison(before=before.label, after=after.label, differences=differences, rebuilt=tuple(rebuilt.values()),
                      dropped=dropped, stages=len(after.rows))  # fmt: skip


def _new(after: Side, known: Collection[str | None]) -> Comparison:
    """Return what a build adds of which the other side has nothing but perhaps some of its stages."""
    rebuilt = tuple(Rebuilt(name, "new", (), None) for name, row in after.rows.items() if row.recipe not in known)
    return Comparison(before="", after=after.label, differences=(), rebuilt=rebuilt, dropped=(), stages=0)


def _counted(rebuilt: Iterable[Rebuilt]) -> tuple[Rebuilt, ...]:
    """Return stages with the same name and reason as one, with what they take together."""
    groups: dict[Rebuilt, list[Estimate | None]] = {}
    for one in rebuilt:
        groups.setdefault(replace(one, estimate=None), []).append(one.estimate)
    return tuple(
        replace(one, count=len(costs), estimate=total(cost for cost in costs if cost) if all(costs) else None)
        for one, costs in groups.items()
    )


def sides(target: str, only: Collection[str] = ()) -> Sides:
    """Return what a person names: a spec, a lock, `REVISION:path` of either, or the start of an artifact's id.

    `only` chooses among the builds of a spec's matrix. Raises `SpeccError` for what is none of these, and for what is
    wrong with it. Only a revision starts a process, git.
    """
    path = Path(target)
    if path.is_file():
        return _of_lock(path, target) if target.endswith(LOCK) else _of_spec(path, target, only)
    if ":" in target:
        return _of_revision(target, only)
    if target.endswith((".yaml", ".yml", LOCK)):
        raise SpeccError(
            f"there is no file `{target}`", hint="give a spec, a lock, `REVISION:path` or an artifact's id"
        )
    return {"": _of_artifact(Store.locate(Path.cwd() / "spec.yaml"), target)}


def _of_spec(path: Path, label: str, only: Collection[str]) -> Sides:
    return {
        one.build: Side(label=label, rows=_rows(one.plan, one.lock), lock=one.lock, compiled=one)
        for one in compile_builds(path).chosen(only)
    }


def _of_lock(path: Path, label: str) -> Sides:
    builds = locks.read(path)
    if builds is None:
        raise SpeccError("the lock holds conflict markers", where=label, hint="`specc lock SPEC` writes it anew")
    found: dict[str, Side] = {}
    for name, lock in builds.items():
        try:
            plan = lower(lock.locked.values, machine_class(lock.locked.machine, lock.locked.engines), name)
        except (KeyError, TypeError) as error:
            raise SpeccError(
                "the lock is of a release whose values this one does not understand",
                where=label,
                hint="compare the specs, or lock it anew: `specc lock --upgrade defaults SPEC`",
            ) from error
        found[name] = Side(label=label, rows=_rows(plan, lock), lock=lock)
    return found


def _rows(plan: Plan, lock: Lock) -> dict[str, Row]:
    """Return the rows of a plan; a stage's code is of the version that the lock says."""
    return {
        stage.name: Row(
            version=lock.locked.stages.get(stage.name, stage.row.version),
            values=locks.flat(stage.row.params),
            facets=stage.facets,
            inputs=tuple(stage.row.inputs.values()),
            reads=stage.row,
            recipe=stage.recipe,
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


def _of_revision(target: str, only: Collection[str]) -> Sides:
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

    def text(path: str) -> str:
        return run("-C", top, "show", f"{revision}:{path}").decode(errors="replace")

    with TemporaryDirectory() as folder:
        if name.endswith(LOCK):
            path = Path(folder) / Path(name).name
            path.write_text(text(name))
            return _of_lock(path, target)
        wanted = [locks.lock_path(Path(name)).as_posix()]
        for part, document in chain(name, text).items():
            wanted += _files(document, part)
        listed = run("-C", top, "ls-tree", "-r", "-z", "--name-only", revision, "--", *wanted).decode().split("\0")
        tar = run("-C", top, "archive", "--format=tar", revision, "--", *filter(None, listed))
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            archive.extractall(folder, filter="data")
        return _of_spec(Path(folder) / name, target, only)


def _files(document: Document, name: str) -> list[str]:
    """Return the paths from the repository's root of a spec and what it names beside it."""
    here = posixpath.dirname(name)
    places = [document.root.at(place) for place, _ in named_places(document.data)]
    named = [node.value for node in places if node is not None and isinstance(node.value, str)]
    beside = [joined(here, one) for one in named if ":" not in one]
    return [name, *(one for one in beside if not one.startswith(("..", "/")))]


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
    return [(kind, path, *values) for (kind, path), values in found.items()]


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


def _costs(after: Sides) -> Mapping[str | None, Estimate]:
    """Return what the stages of the second side take by their recipes, where it is a spec or a lock."""
    if compiled := [one.compiled for one in after.values() if one.compiled is not None]:
        return {**estimates(compiled)}
    found: dict[str | None, Estimate] = {}
    locked = [one.lock.locked for one in after.values() if one.lock is not None]
    for one in locked:
        machine = machine_class(one.machine, one.engines)
        found |= Estimator(machine, None).estimates(lower(one.values, machine), one.values)
    return found
