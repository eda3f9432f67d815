"""How decisions are shown: the table of `plan` and `status`, and the reasons in it."""

from __future__ import annotations

from typing import Any

from specc.core.cli.options import human, minutes, paint
from specc.core.compiler import Compiled, show
from specc.core.plan import Change, Decision

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
        return _change(compiled, first) + more
    if decision.action == "build?":
        names = " and ".join(f"`{name}`" for name in decision.waits_for)
        verb = "is" if len(decision.waits_for) == 1 else "are"
        return f"its input {names} {verb} built; a hit if that comes out the same"
    return "never built here" if decision.last is None else "its artifact is no longer in the store"


def _change(compiled: Compiled, change: Change) -> str:
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


def table(compiled: Compiled, decisions: list[Decision]) -> str:
    """Return the plan as a table."""
    width = max(len("stage"), *(len(decision.stage.name) for decision in decisions))
    lines = [f"{'stage':<{width}}  key       action  why"]
    for decision in decisions:
        action = paint(f"{decision.action:<6}", _COLOURS[decision.action])
        key = (decision.key or decision.stage.recipe)[:8] if decision.key else "        "
        lines.append(f"{decision.stage.name:<{width}}  {key}  {action}  {reason(compiled, decision)}".rstrip())
    return "\n".join(lines)


def summary(compiled: Compiled, decisions: list[Decision]) -> str:
    """Return one line on the whole plan, with what the last builds took where all of them are known."""
    hits = sum(decision.action == "hit" for decision in decisions)
    todo = [decision for decision in decisions if decision.action != "hit"]
    line = f"plan: {hits} hit{'s' * (hits != 1)}, {len(todo)} to build"
    records = [compiled.store.record(item.last.key) for item in todo if item.last is not None]
    times = [float(record["seconds"]) for record in records if "seconds" in record]
    if todo and len(times) == len(todo):
        size = sum(item.last.size for item in todo if item.last is not None)
        line += f", about {minutes(sum(times))} and {human(size)} as they took last time"
    return line


def as_data(compiled: Compiled, decisions: list[Decision]) -> list[dict[str, Any]]:
    """Return decisions for `--json`."""
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
        }
        for decision in decisions
    ]  # fmt: skip
