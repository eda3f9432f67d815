"""How decisions are shown: the tables of `plan`, what a build will take, and the reasons that `status` gives too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specc.core.cli.options import columns, human, minutes, paint
from specc.core.compiler import Compiled, estimates, show
from specc.core.execute import machine_name
from specc.core.language import in_order
from specc.core.plan import Change, Decision, Estimate, decide, lower, total
from specc.core.plan import uncounted as sources_uncounted
from specc.core.plan.rates import VERIFYING
from specc.core.runnable import refusals

_COLOURS = {"hit": "green", "build": "yellow", "build?": "cyan", "stream": "blue"}


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of a plan with what is to be done and what it takes; `compiled` is the first build that has it."""

    compiled: Compiled
    decision: Decision
    estimate: Estimate


def decided(builds: Sequence[Compiled]) -> list[list[Decision]]:
    """Return the decisions of each of a spec's builds."""
    known = dict[str, Decision]()
    return [decide(compiled.plan, compiled.store, known) for compiled in builds]


def refuse_unrunnable(builds: Sequence[Compiled]) -> None:
    """Raise `SpeccErrors` if vLLM cannot run a verifier on its build's class, and has something to do with it."""
    refused = [(compiled, found) for compiled in builds
               if (found := refusals(compiled.values, compiled.machine, compiled.document))]  # fmt: skip
    decisions = decided([compiled for compiled, _ in refused])
    errors = [
        error
        for (_, found), made in zip(refused, decisions, strict=True)
        if any(decision.action != "hit" and decision.stage.name in VERIFYING for decision in made)
        for error in found
    ]
    if errors:
        raise in_order(errors, str(builds[0].path))


def steps(builds: Sequence[Compiled]) -> list[Step]:
    """Return the steps of a spec's builds in the order they run, what several builds share once."""
    once: dict[str, Step] = {}
    found = estimates(builds)
    for compiled, decisions in zip(builds, decided(builds), strict=True):
        for decision in decisions:
            recipe = decision.stage.recipe
            once.setdefault(recipe, Step(compiled, decision, found[recipe]))
    return list(once.values())


def reason(compiled: Compiled, decision: Decision) -> str:
    """Say in one line why a stage is what it is."""
    if decision.action == "hit":
        return human(compiled.store.manifest(decision.digest or "").size)
    if decision.action == "stream":
        return "computed while `draft` trains, no artifact"
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


def table(found: Sequence[Step]) -> str:
    """Return the plan of one build as a table; what a stage will take stands beside those that are to be built."""
    width = max(len("stage"), *(len(step.decision.stage.name) for step in found))
    lines = [f"{'stage':<{width}}  key       action  time    disk    memory  why"]
    for step in found:
        decision = step.decision
        action = paint(f"{decision.action:<6}", _COLOURS[decision.action])
        key = (decision.key or "")[:8]
        cells = "  ".join(f"{cell:<6}" for cell in _cells(decision.action, step.estimate))
        why = reason(step.compiled, decision)
        lines.append(f"{decision.stage.name:<{width}}  {key:<8}  {action}  {cells}  {why}")
    return "\n".join(lines)


def grouped(found: Sequence[Step]) -> str:
    """Return the plan of a matrix as a table: a line for each stage and what is done with it."""
    rows = [["stage", "count", "action", "time", "disk", "memory", "why"]]
    groups: dict[tuple[str, str], list[Step]] = {}
    for step in found:
        groups.setdefault((step.decision.stage.name, step.decision.action), []).append(step)
    for (name, action), some in groups.items():
        why = reason(some[0].compiled, some[0].decision) if len(some) == 1 else "a different one for each build"
        cells = _cells(action, total(step.estimate for step in some))
        rows.append([name, str(len(some)), action, *cells, why])
    order = list(dict.fromkeys(step.decision.stage.name for step in found))
    head, *lines = columns([rows[0], *sorted(rows[1:], key=lambda row: order.index(row[0]))])
    return "\n".join([head, *lines])


def _cells(action: str, estimate: Estimate) -> tuple[str, str, str]:
    if action in ("hit", "stream"):
        return "", "", ""
    return minutes(estimate.seconds), human(estimate.disk), human(estimate.memory)


def work(found: Iterable[Step]) -> list[Estimate]:
    """Return what each step will take that is to be done."""
    return [step.estimate for step in found if step.decision.due]


def summary(found: Sequence[Step], builds: int = 1) -> str:
    """Return one line on the whole plan: how much is to be built, what it will take, and how that is known."""
    compiled, todo = found[0].compiled, work(found)
    streamed = sum(step.decision.action == "stream" for step in found)
    hits, whole = len(found) - len(todo) - streamed, total(todo)
    many = f"{builds} builds, " if builds > 1 else ""
    line = f"plan: {many}{hits} hit{'s' * (hits != 1)}, {len(todo)} to build" + f", {streamed} streamed" * (
        streamed > 0
    )
    if not todo:
        return line
    here = compiled.machine.name == machine_name()
    where = "on this machine" if here else f"on a machine of the class `{compiled.machine.name}`"
    known = "measured" if whole.measured else "partly measured" if any(one.measured for one in todo) else "declared"
    time = f"{'about' if whole.complete else 'more than'} {minutes(whole.seconds)}"
    return f"{line}, {time} {where} ({known}), {human(whole.disk)} on disk, {human(whole.memory)} of memory"


def class_of_profile(compiled: Compiled) -> str | None:
    """Say that a profile builds in another numerics class than the spec alone would, None if it does not."""
    if compiled.profile is None:
        return None
    own = lower(compiled.lock.locked.values, compiled.machine).numerics
    if own == compiled.plan.numerics:
        return None
    return (
        f"the profile {compiled.profile.document.name} builds in the numerics class `{compiled.plan.numerics}`, and the"
        f" spec alone in `{own}`: digests may differ"
    )


def warnings(builds: Sequence[Compiled]) -> list[str]:
    """Return what a user should think of before building, each once."""
    every = (compiled.values["data"]["responses"] for compiled in builds)
    return list(dict.fromkeys(text for responses in every for text in _warned(responses)))


def uncounted(builds: Sequence[Compiled], found: Iterable[Step]) -> str | None:
    """Say which sources an estimate lacks, None where it lacks none."""
    if total(work(found)).complete:
        return None
    names = list(dict.fromkeys(name for one in builds for name in sources_uncounted(one.values, one.resolved.files)))
    listed = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    why = "nothing says how many they are before they are read: give `rows`"
    return f"the rows of {listed} are in no number above, for {why}" if names else None


def _warned(responses: Mapping[str, Any]) -> Iterator[str]:
    if responses["from"] == "data":
        yield (
            "the answers are the data's own and not the verifier's (`data.responses.from: data`): the draft learns what"
            " the verifier would say next in texts that it would not write. Measured with SmolLM2-135M and 448 answers"
            " in another's style it was accepted as often (1.42 either way); of larger models a loss is reported"
        )
    elif responses.get("endpoint", {}).get("protocol") == "chat":
        yield (
            "the server's own chat template writes the prompts (`protocol: chat`), and nothing here holds it to the"
            " verifier's: `protocol: completions` sends token ids"
        )


def estimate_data(whole: Estimate) -> dict[str, Any]:
    """Return an estimate for `--json`."""
    return {**asdict(whole), "seconds": round(whole.seconds, 3)}


def as_data(found: Iterable[Step]) -> list[dict[str, Any]]:
    """Return steps for `--json`, each with what it takes, be it done or not."""
    return [
        {
            "stage": step.decision.stage.name,
            "action": step.decision.action,
            "key": step.decision.key,
            "recipe": step.decision.stage.recipe,
            "digest": step.decision.digest,
            "waits_for": list(step.decision.waits_for),
            "changes": [
                {"path": item.path, "before": item.before, "after": item.after, "kind": item.kind,
                 "where": step.compiled.where(item.path) if item.kind == "value" else None}
                for item in step.decision.changes
            ],
            "why": reason(step.compiled, step.decision),
            "estimate": estimate_data(step.estimate),
        }
        for step in found
    ]  # fmt: skip
