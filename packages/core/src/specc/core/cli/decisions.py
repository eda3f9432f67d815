"""How decisions are shown: the table of `plan`, what a build will take, and the reasons that `status` gives too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from specc.core.cli.options import human, minutes, paint
from specc.core.compiler import Compiled, show
from specc.core.execute import machine_name
from specc.core.plan import Change, Decision, Estimate, total

_COLOURS = {"hit": "green", "build": "yellow", "build?": "cyan"}


def reason(compiled: Compiled, decision: Decision) -> str:
    """Say in one line why a stage is what it is."""
    if decision.action == "hit":
        return human(compiled.store.manifest(decision.digest or "").size)
    if decision.key and (damage := compiled.store.damage(decision.stage.name, decision.key)):
        return f"its artifact is damaged: {damage}"
    if decision.changes:
        first, *rest = decision.changes
        more = f", and {len(rest)} more" if rest else ""
        return change_words(compiled, first) + more
    if decision.action == "build?":
        names = " and ".join(f"`{name}`" for name in decision.waits_for)
        verb = "is" if len(decision.waits_for) == 1 else "are"
        return f"its input {names} {verb} built; a hit if that comes out the same"
    return "never built here" if decision.last is None else "its artifact is no longer in the store"


def change_words(compiled: Compiled, change: Change) -> str:
    """Say what differs from the last build, before and after, and where the user wrote it."""
    before, after = show(change.before), show(change.after)
    if change.kind == "value":
        place = compiled.where(change.path)
        return f"{change.path} {before} → {after}" + (f" ({place})" if place else "")
    if change.kind == "engine":
        return f"{change.path} {before} → {after} (numerics class)"
    if change.kind == "version":
        return f"stage version {before} → {after}"
    return (
        f"its input `{change.path}` has changed" if change.path != "stages" else "the history of its inputs has changed"
    )


def table(compiled: Compiled, decisions: list[Decision], found: Mapping[str, Estimate]) -> str:
    """Return the plan as a table; what a stage will take stands beside those that are to be built."""
    width = max(len("stage"), *(len(decision.stage.name) for decision in decisions))
    lines = [f"{'stage':<{width}}  key       action  time    disk    memory  why"]
    for decision in decisions:
        action = paint(f"{decision.action:<6}", _COLOURS[decision.action])
        key = (decision.key or "")[:8]
        cells = "  ".join(f"{cell:<6}" for cell in _cells(decision, found))
        lines.append(f"{decision.stage.name:<{width}}  {key:<8}  {action}  {cells}  {reason(compiled, decision)}")
    return "\n".join(lines)


def _cells(decision: Decision, found: Mapping[str, Estimate]) -> tuple[str, str, str]:
    if decision.action == "hit":
        return "", "", ""
    stage = found[decision.stage.name]
    return minutes(stage.seconds), human(stage.disk), human(stage.memory)


def work(decisions: list[Decision], found: Mapping[str, Estimate]) -> list[Estimate]:
    """Return what each stage will take that is to be built."""
    return [found[decision.stage.name] for decision in decisions if decision.action != "hit"]


def summary(compiled: Compiled, decisions: list[Decision], found: Mapping[str, Estimate]) -> str:
    """Return one line on the whole plan: how much is to be built, what it will take, and how that is known."""
    todo = work(decisions, found)
    hits, whole = len(decisions) - len(todo), total(todo)
    line = f"plan: {hits} hit{'s' * (hits != 1)}, {len(todo)} to build"
    if not todo:
        return line
    here = compiled.machine.name == machine_name()
    where = "on this machine" if here else f"on a machine of the class `{compiled.machine.name}`"
    known = "measured" if whole.measured else "partly measured" if any(one.measured for one in todo) else "declared"
    time = f"{'about' if whole.complete else 'more than'} {minutes(whole.seconds)}"
    return f"{line}, {time} {where} ({known}), {human(whole.disk)} on disk, {human(whole.memory)} of memory"


def estimate_data(whole: Estimate) -> dict[str, Any]:
    """Return an estimate for `--json`."""
    return {**asdict(whole), "seconds": round(whole.seconds, 3)}


def as_data(compiled: Compiled, decisions: list[Decision], found: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    """Return decisions for `--json`, each with what its stage takes, be it there or not."""
    return [
        {
            "stage": decision.stage.name,
            "action": decision.action,
            "key": decision.key,
            "recipe": decision.stage.recipe,
            "digest": decision.digest,
            "waits_for": list(decision.waits_for),
            "changes": [
                {"path": item.path, "before": item.before, "after": item.after, "kind": item.kind,
                 "where": compiled.where(item.path) if item.kind == "value" else None}
                for item in decision.changes
            ],
            "why": reason(compiled, decision),
            "estimate": estimate_data(found[decision.stage.name]),
        }
        for decision in decisions
    ]  # fmt: skip
