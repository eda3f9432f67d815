"""The compiler's front end, once for every command: spec and lock in, resolved spec and new lock out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from specc.core import lock as locks
from specc.core.errors import SpeccError
from specc.core.execute import machine_name
from specc.core.language import Checked, check
from specc.core.lock import Lock, Locked, MachineClass, Moved, machine_class
from specc.core.plan import Plan, lower, stages
from specc.core.resolve import ResolvedSpec, resolve
from specc.core.store import Store

Trust = Literal["update", "locked", "frozen"]
"""What to do with a lock that the spec has moved away from: write it anew, refuse, or not even compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A spec that was compiled up to its lock.

    `before` is the lock on disk, None if there is none. `lock` is what it should be now; `moved` says how they
    differ. `machine` is the class that is planned for.
    """

    path: Path
    checked: Checked
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

    def where(self, path: str) -> str | None:
        """Return `file:line` of the value at a dotted path if the user wrote it."""
        parts = path.split(".")
        while parts and ".".join(parts) not in self.resolved.written:
            parts.pop()
        if not parts:
            return None
        position = self.checked.document.position(tuple(parts))
        return f"{position.file}:{position.line}"


def compile_spec(path: Path, *, trust: Trust = "update", machine: str | None = None, fresh: bool = False) -> Compiled:
    """Check, resolve and lock a spec in memory; nothing is written.

    `machine` names the class to plan for: by default the lock's own, or this machine's if there is no lock.
    `fresh` takes nothing from the lock on disk. Raises `SpeccError` for everything that is wrong
    with the spec, the lock or the verifier, and with `trust="locked"` for a lock that is missing or stale.
    """
    checked = check(path)
    values = checked.spec.values()
    store = Store.locate(path, values["runtime"].get("store"))
    before = locks.read(locks.lock_path(path))
    if before is None and trust != "update":
        raise SpeccError(
            f"there is no lock `{locks.lock_path(path).name}`, and `--{trust}` was given",
            hint=f"`specc lock {path}` writes it",
        )
    resolved = resolve(
        checked,
        base=path.parent,
        digest=store.file_digest,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        locked=asdict(before.locked) if before and not fresh else None,
    )
    if trust == "frozen" and before is not None:
        lock, moved = before, []
    else:
        name = before.locked.machine if before else machine_name()
        locked = Locked(
            machine=name,
            written=resolved.written,
            values=resolved.values,
            stages={row.name: row.version for row in stages(resolved.values)},
            engines=locks.engines(),
        )
        lock = Lock(locked=locked, results={} if fresh else _kept_results(before, locked))
        moved = locks.compare(before.locked, locked) if before else []
    compiled = Compiled(
        path=path,
        checked=checked,
        resolved=resolved,
        before=before,
        lock=lock,
        moved=tuple(moved),
        machine=machine_class(machine or lock.locked.machine),
        store=store,
    )
    if moved and trust == "locked":
        raise stale(compiled, "`--locked` was given")
    return compiled


def stale(compiled: Compiled, why: str) -> SpeccError:
    """Return the error for a lock that the spec has moved away from, naming every value."""
    lines = [describe(compiled, moved) for moved in compiled.moved]
    return SpeccError(
        f"the lock {compiled.lock_path.name} is stale, and {why}",
        note="\n  ".join(lines),
        hint=f"`specc lock {compiled.path}` writes it anew",
    )


def describe(compiled: Compiled, moved: Moved) -> str:
    """Return one line on a value that moved."""
    place = compiled.where(moved.path)
    before, after = show(moved.lock), show(moved.spec)
    side = "in specc" if moved.path.startswith(("stages.", "engines.")) else "in the spec"
    return f"{moved.path}: {before} in the lock, {after} {side}" + (f" ({place})" if place else "")


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


def _kept_results(before: Lock | None, locked: Locked) -> dict[str, dict[str, str]]:
    """Return those results of the old lock whose stages still have the same recipes."""
    if before is None:
        return {}
    kept: dict[str, dict[str, str]] = {}
    for numerics, results in before.results.items():
        name = numerics.rsplit("-t", 1)[0]
        if name not in locks.CLASSES:
            continue
        try:
            old = lower(before.locked.values, machine_class(name))
        except (KeyError, TypeError):  # a lock of an older release, whose values a stage no longer understands
            continue
        new = lower(locked.values, machine_class(name))
        recipes = {stage.name: stage.recipe for stage in old.stages}
        same = {stage.name for stage in new.stages if recipes.get(stage.name) == stage.recipe}
        if new.numerics == numerics and (rows := {stage: digest for stage, digest in results.items() if stage in same}):
            kept[numerics] = rows
    return kept


def with_results(lock: Lock, numerics: str, found: dict[str, str]) -> Lock:
    """Return the lock with a class's results added."""
    rows = {**lock.results.get(numerics, {}), **found}
    return replace(lock, results={**lock.results, numerics: rows})
