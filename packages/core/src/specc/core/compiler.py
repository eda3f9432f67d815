"""The compiler's front end, once for every command: spec and lock in, resolved spec and new lock out."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from specc.core import lock as locks
from specc.core.errors import SpeccError
from specc.core.execute import machine_name
from specc.core.language import Document, check, in_order, matrix
from specc.core.language.profile import Profile, read_profile
from specc.core.language.rules import unpinned
from specc.core.lock import Lock, Locked, Locks, MachineClass, Moved, machine_class
from specc.core.plan import Estimate, Estimator, Plan, lower, runtime_of
from specc.core.resolve import ResolvedSpec, Resolver, restore
from specc.core.resolve.data import unpinned_data
from specc.core.store import Store

Trust = Literal["update", "locked", "frozen"]
"""What to do with a lock that the spec has moved away from: write it anew, refuse, or not even read the spec."""

Part = Literal["verifier", "data", "engines", "defaults"]
"""What of a lock can be taken anew, the rest staying as it is."""
MANY: Final = 8
"""Builds that are named one by one where a lock differs."""
PARTS: Final[tuple[Part, ...]] = get_args(Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A build of a spec that was compiled up to its lock.

    `build` is its name in the spec's matrix, empty where there is none. `document` is the spec's text, None if the lock
    alone was read. `before` is its lock on disk, or that of another build if the matrix did not have this one, None if
    there is none. `lock` is what it should be now; `moved` says how they differ. `machine` is the class that is planned
    for, with the lock's engines. `values` are the locked ones, with the `runtime` of a profile if there is one, and
    `plan` is what they are lowered to.
    """

    path: Path
    build: str
    document: Document | None
    resolved: ResolvedSpec
    before: Lock | None
    lock: Lock
    moved: tuple[Moved, ...]
    machine: MachineClass
    values: Mapping[str, Any]
    plan: Plan
    store: Store
    profile: Profile | None

    @property
    def name(self) -> str:
        """The speculator's name, with that of the build: what the store knows its artifacts by."""
        return self.plan.name

    @property
    def lock_path(self) -> Path:
        """Where the lock is."""
        return locks.lock_path(self.path)

    def where(self, path: str) -> str | None:
        """Return `file:line` of the value at a dotted path if the user wrote it."""
        parts = path.split(".")
        if self.profile is not None and path in self.profile.document.written():
            position = self.profile.document.position(tuple(parts))
            return f"{position.file}:{position.line}"
        if self.document is None or not any(
            ".".join(parts[:end]) in self.resolved.written for end in range(1, len(parts) + 1)
        ):
            return None
        position = self.document.position(tuple(int(part) if part.isdecimal() else part for part in parts))
        return f"{position.file}:{position.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Builds:
    """All builds of a spec, compiled: one, or those of its matrix in their order, which share a lock.

    `before` are the locks on disk, None if there are none.
    """

    path: Path
    every: tuple[Compiled, ...]
    before: Locks | None

    @property
    def lock_path(self) -> Path:
        """Where the lock is."""
        return locks.lock_path(self.path)

    @property
    def locks(self) -> Locks:
        """What the lock should be now."""
        return {compiled.build: compiled.lock for compiled in self.every}

    @property
    def moved(self) -> list[tuple[Moved, Compiled]]:
        """What differs from the lock on disk, each with the first build in which it does."""
        if self.before is None:
            return []
        there, now = set(self.before), {compiled.build for compiled in self.every}
        moved = [(compiled, item) for compiled in self.every if compiled.build in there for item in compiled.moved]
        found = [
            *((Moved(name, None, "a build"), self.every[0]) for name in _few(now - there, "new")),
            *((Moved(name, "a build", None), self.every[0]) for name in _few(there - now, "gone")),
        ]
        once = {repr(item): (item, compiled) for compiled, item in reversed(moved)}
        return [*found, *sorted(once.values(), key=lambda item: item[0].path)]

    def chosen(self, only: Collection[str]) -> list[Compiled]:
        """Return the builds that have all of some values; raises `SpeccError` if there is none."""
        names = set(matrix.choose([compiled.build for compiled in self.every], only))
        return [compiled for compiled in self.every if compiled.build in names]


def estimates(builds: Sequence[Compiled]) -> dict[str, Estimate]:
    """Return what the stages of a spec's builds will take, by their recipes: what builds share is reckoned once."""
    estimator = Estimator(builds[0].machine, builds[0].store)
    found: dict[str, Estimate] = {}
    for one in builds:
        found |= estimator.estimates(one.plan, one.values, one.resolved.files)
    return found


def _few(builds: Collection[str], what: str) -> list[str]:
    """Return paths for builds that a lock lacks or has too many, one for all if they are many."""
    return [f"builds.{name}" for name in sorted(builds)] if len(builds) <= MANY else [f"builds ({len(builds)} {what})"]


def compile_spec(
    path: Path,
    *,
    trust: Trust = "update",
    machine: str | None = None,
    only: Collection[str] = (),
    profile: Path | None = None,
) -> Compiled:
    """Check, resolve and lock a spec of which one build is meant; see `compile_builds`.

    Raises `SpeccError` also if there are several builds that have the values `only`.
    """
    every = compile_builds(path, trust=trust, machine=machine, profile=profile).every
    name = matrix.choose_one([compiled.build for compiled in every], only)
    return next(compiled for compiled in every if compiled.build == name)


def compile_builds(
    path: Path,
    *,
    trust: Trust = "update",
    machine: str | None = None,
    upgrade: Collection[Part] = (),
    profile: Path | None = None,
) -> Builds:
    """Check, resolve and lock all builds of a spec in memory; nothing is written.

    `machine` names the class to plan for: by default the lock's own, or this machine's if there is no lock.
    `upgrade` names what is not taken from the lock on disk. `profile` is a file whose `runtime` goes before the spec's:
    it is planned and built with, and is not in the lock. Raises `SpeccError` for everything that is wrong
    with the spec, the lock or the verifier, and unless `trust` is `update` for a lock that is missing or stale.
    """
    before = locks.read(locks.lock_path(path))
    if trust != "update" and before is None:
        if trust == "locked":
            check(path)  # what is wrong with the spec comes first
        raise _no_lock(path, trust)
    every: list[Compiled] = []
    errors: list[SpeccError] = []
    own = read_profile(profile, path) if profile else None
    place = own.runtime.get("store") if own else None
    if trust == "frozen" and before is not None:
        for name, lock in before.items():
            resolved = restore(lock.locked, base=path.parent)
            store = Store.locate(path, place or resolved.values["runtime"].get("store"))
            every.append(
                _compiled(path, name, None, resolved, lock, store=store, machine=machine, upgrade=upgrade, profile=own)
            )
        return _unmoved(Builds(path=path, every=tuple(every), before=before), trust)
    builds = check(path)
    store = Store.locate(path, place or builds[0].spec.runtime.store)
    resolver = Resolver(base=path.parent, digest=store.file_digest, date=time.strftime("%Y-%m-%d", time.gmtime()))
    for checked in builds:
        # A build that is new in the matrix takes what it shares with the others from the lock of one of them.
        lock = before.get(checked.build) or before[_nearest(checked.build, before)] if before else None
        if trust == "locked" and lock:  # which asks no hub
            values, pinned = checked.spec.values(), lock.locked.values
            error = unpinned(checked.document, values["verifier"], pinned["verifier"])
            if found := [*([error] if error else []), *unpinned_data(values, pinned, checked.document)]:
                errors += found
                continue
        try:
            resolved = resolver.resolve(checked, locked=lock.locked if lock else None, upgrade=upgrade)
        except SpeccError as error:
            errors += error.errors
            continue
        every.append(
            _compiled(path, checked.build, checked.document, resolved, lock, store=store, machine=machine,
                      upgrade=upgrade, profile=own)
        )  # fmt: skip
    if errors:
        raise errors[0] if len(errors) == 1 else in_order(errors, str(path))
    return _unmoved(Builds(path=path, every=tuple(every), before=before), trust)


def _nearest(build: str, others: Collection[str]) -> str:
    """Return the name that has the most values of a build's."""
    parts = set(matrix.parts_of(build))
    return max(others, key=lambda other: len(parts.intersection(matrix.parts_of(other))))


def _unmoved(builds: Builds, trust: Trust) -> Builds:
    """Return builds; raises `SpeccError` if they differ from their lock and it is not to be written anew."""
    if trust != "update" and builds.moved:
        raise stale(builds, f"`--{trust}` was given")
    return builds


def _compiled(
    path: Path,
    build: str,
    document: Document | None,
    resolved: ResolvedSpec,
    before: Lock | None,
    *,
    store: Store,
    machine: str | None,
    upgrade: Collection[Part],
    profile: Profile | None,
) -> Compiled:
    """Return a build with the lock that it should have."""
    own = before.locked.machine if before else machine_name()
    pins: Mapping[str, Mapping[str, str]] = locks.engines()
    if before and "engines" not in upgrade:  # its own, and what a release has added to them
        pins = {name: {**pins.get(name, {}), **row} for name, row in before.locked.engines.items()}
    planned = machine_class(machine or own, pins)
    values = profile.over(resolved.values) if profile else resolved.values
    plan = lower(values, planned, build)
    locked = Locked(
        machine=own,
        written=locks.placeless(resolved.written),
        values=locks.placeless_values(resolved.values),
        stages={stage.name: stage.row.version for stage in plan.stages},
        engines={**pins, planned.name: planned.engines},
    )
    results = _kept_results(before, locked) if before and set(upgrade) != set(PARTS) else {}
    return Compiled(
        path=path,
        build=build,
        document=document,
        resolved=resolved,
        before=before,
        lock=Lock(locked=locked, results=results),
        moved=tuple(locks.compare(before.locked, locked)) if before else (),
        machine=planned,
        values=values,
        plan=plan,
        store=store,
        profile=profile,
    )


def _no_lock(path: Path, trust: Trust) -> SpeccError:
    return SpeccError(
        f"there is no lock `{locks.lock_path(path).name}`, and `--{trust}` was given",
        hint=f"`specc lock {path}` writes it",
    )


def stale(builds: Builds, why: str, upgrade: Collection[Part] = ()) -> SpeccError:
    """Return the error for a lock that the spec or this release has moved away from, naming every value."""
    lines = [describe(compiled, moved) for moved, compiled in builds.moved]
    parts = [""] if set(upgrade) == set(PARTS) else [f" {part}" for part in upgrade]
    options = "".join(f"--upgrade{part} " for part in parts)
    return SpeccError(
        f"the lock {builds.lock_path.name} is stale, and {why}",
        note="\n  ".join(lines),
        hint=f"`specc lock {options}{builds.path}` writes it anew",
    )


def describe(compiled: Compiled, moved: Moved) -> str:
    """Return one line on a value that moved."""
    return f"{moved.path}: {show(moved.lock)} in the lock, {show(moved.spec)} {_side(compiled, moved.path)}"


def _side(compiled: Compiled, path: str) -> str:
    """Return where the new value of what moved is from, as it stands in a sentence."""
    if path.startswith(("stages.", "engines.")):
        return "in specc"
    if place := compiled.where(path.removeprefix("written.")):
        return f"{'now' if path.endswith('.sha256') else 'in the spec'} ({place})"
    origin = compiled.resolved.origins.get(path, "")
    if origin.startswith("default"):
        return "by default"
    return origin if origin.startswith(("derived", "read")) else "now"


def show(value: object) -> str:
    """Return a value as it stands in a sentence: short, hashes cut."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and 0 < abs(value) < 1e-2:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    text = str(value) if not isinstance(value, bool) else str(value).lower()
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return f"sha256:{text[:12]}…"
    return text if len(text) <= 60 else text[:57] + "…"


def _kept_results(before: Lock, locked: Locked) -> dict[str, dict[str, str]]:
    """Return those results of the old lock whose stages still have the same recipes, each in its own class.

    A class may have the threads and the ranks of a profile, or those of the spec as it was.
    """
    kept: dict[str, dict[str, str]] = {}
    for numerics, results in before.results.items():
        name, _, parts = numerics.rpartition("-t")
        if name not in locks.CLASSES:
            continue
        try:
            runtime = runtime_of(parts)
            old = lower({**before.locked.values, "runtime": runtime}, machine_class(name, before.locked.engines))
        except (KeyError, TypeError, ValueError):  # of an older release, whose values a stage no longer understands
            continue
        new = lower({**locked.values, "runtime": runtime}, machine_class(name, locked.engines))
        same = _same(old, new, before.locked.stages)
        if rows := {stage: digest for stage, digest in results.items() if stage in same}:
            kept[numerics] = rows
    return kept


def _same(old: Plan, new: Plan, versions: Mapping[str, int]) -> set[str]:
    """Return the stages of `new` that are those of `old`, whose code had other `versions` than what is installed."""
    recipes = {stage.name: stage.recipe for stage in old.stages}
    same = set[str]()
    for stage in new.stages:
        code = versions.get(stage.name) == stage.row.version and same.issuperset(stage.row.inputs.values())
        if code and recipes.get(stage.name) == stage.recipe:
            same.add(stage.name)
    return same


def with_results(lock: Lock, numerics: str, found: dict[str, str]) -> Lock:
    """Return the lock with a class's results added."""
    rows = {**lock.results.get(numerics, {}), **found}
    return replace(lock, results={**lock.results, numerics: rows})
