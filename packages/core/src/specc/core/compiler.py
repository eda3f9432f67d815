"""The compiler's front end, once for every command: spec and lock in, resolved spec and new lock out."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

from specc.core import lock as locks
from specc.core.errors import SpeccError
from specc.core.execute import machine_name
from specc.core.language import Document, check
from specc.core.lock import Lock, Locked, MachineClass, Moved, machine_class
from specc.core.plan import Estimate, Plan, estimates, lower, stages
from specc.core.resolve import ResolvedSpec, resolve, restore
from specc.core.store import Store

Trust = Literal["update", "locked", "frozen"]
"""What to do with a lock that the spec has moved away from: write it anew, refuse, or not even read the spec."""

Part = Literal["verifier", "data", "engines", "defaults"]
"""What of a lock can be taken anew, the rest staying as it is."""
PARTS: Final[tuple[Part, ...]] = get_args(Part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A spec that was compiled up to its lock.

    `document` is the spec's text, None if the lock alone was read. `before` is the lock on disk, None if there is
    none. `lock` is what it should be now; `moved` says how they differ. `machine` is the class that is planned for,
    with the lock's engines.
    """

    path: Path
    document: Document | None
    resolved: ResolvedSpec
    before: Lock | None
    lock: Lock
    moved: tuple[Moved, ...]
    machine: MachineClass
    store: Store

    @property
    def name(self) -> str:
        """The speculator's name."""
        return str(self.lock.locked.values["name"])

    @property
    def lock_path(self) -> Path:
        """Where the lock is."""
        return locks.lock_path(self.path)

    def plan(self) -> Plan:
        """Lower the locked values."""
        return lower(self.lock.locked.values, self.machine)

    def estimates(self) -> dict[str, Estimate]:
        """Return what each stage will take on the machine that is planned for."""
        return estimates(self.lock.locked.values, self.machine, self.store, self.resolved.files)

    def where(self, path: str) -> str | None:
        """Return `file:line` of the value at a dotted path if the user wrote it."""
        parts = path.split(".")
        if self.document is None or not any(
            ".".join(parts[:end]) in self.resolved.written for end in range(1, len(parts) + 1)
        ):
            return None
        position = self.document.position(tuple(int(part) if part.isdecimal() else part for part in parts))
        return f"{position.file}:{position.line}"


def compile_spec(
    path: Path, *, trust: Trust = "update", machine: str | None = None, upgrade: Collection[Part] = ()
) -> Compiled:
    """Check, resolve and lock a spec in memory; nothing is written.

    `machine` names the class to plan for: by default the lock's own, or this machine's if there is no lock.
    `upgrade` names what is not taken from the lock on disk. Raises `SpeccError` for everything that is wrong
    with the spec, the lock or the verifier, and unless `trust` is `update` for a lock that is missing or stale.
    """
    before = locks.read(locks.lock_path(path))
    if trust == "frozen":
        if before is None:
            raise _no_lock(path, trust)
        document, resolved = None, restore(asdict(before.locked), base=path.parent)
        store = Store.locate(path, resolved.values["runtime"].get("store"))
    else:
        checked = check(path)
        if before is None and trust == "locked":
            raise _no_lock(path, trust)
        document, store = checked.document, Store.locate(path, checked.spec.runtime.store)
        resolved = resolve(
            checked,
            base=path.parent,
            digest=store.file_digest,
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            locked=asdict(before.locked) if before else None,
            upgrade=upgrade,
        )
    own = before.locked.machine if before else machine_name()
    pins = before.locked.engines if before and "engines" not in upgrade else locks.engines()
    planned = machine_class(machine or own, pins)
    locked = Locked(
        machine=own,
        written=resolved.written,
        values=resolved.values,
        stages={row.name: row.version for row in stages(resolved.values)},
        engines={**pins, planned.name: planned.engines},
    )
    results = _kept_results(before, locked) if before and set(upgrade) != set(PARTS) else {}
    compiled = Compiled(
        path=path,
        document=document,
        resolved=resolved,
        before=before,
        lock=Lock(locked=locked, results=results),
        moved=tuple(locks.compare(before.locked, locked)) if before else (),
        machine=planned,
        store=store,
    )
    if compiled.moved and trust != "update":
        raise stale(compiled, f"`--{trust}` was given")
    return compiled


def _no_lock(path: Path, trust: Trust) -> SpeccError:
    return SpeccError(
        f"there is no lock `{locks.lock_path(path).name}`, and `--{trust}` was given",
        hint=f"`specc lock {path}` writes it",
    )


def stale(compiled: Compiled, why: str, upgrade: Collection[Part] = ()) -> SpeccError:
    """Return the error for a lock that the spec or this release has moved away from, naming every value."""
    lines = [describe(compiled, moved) for moved in compiled.moved]
    parts = [""] if set(upgrade) == set(PARTS) else [f" {part}" for part in upgrade]
    options = "".join(f"--upgrade{part} " for part in parts)
    return SpeccError(
        f"the lock {compiled.lock_path.name} is stale, and {why}",
        note="\n  ".join(lines),
        hint=f"`specc lock {options}{compiled.path}` writes it anew",
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
    """Return those results of the old lock whose stages still have the same recipes."""
    kept: dict[str, dict[str, str]] = {}
    for numerics, results in before.results.items():
        name = numerics.rsplit("-t", 1)[0]
        if name not in locks.CLASSES:
            continue
        try:
            old = lower(before.locked.values, machine_class(name, before.locked.engines))
        except (KeyError, TypeError):  # a lock of an older release, whose values a stage no longer understands
            continue
        new = lower(locked.values, machine_class(name, locked.engines))
        same = _same(old, new, before.locked.stages)
        if new.numerics == numerics and (rows := {stage: digest for stage, digest in results.items() if stage in same}):
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
