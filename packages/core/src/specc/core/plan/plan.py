"""The plan: stages with recipes, and the one function that decides what each of them needs.

`plan`, `status` and `build` all ask `decide`. A stage's *recipe* is known before anything is built: the hash of its
row and of its inputs' recipes. Its *key* is known once its inputs are there, and uses their content, so that
equal bytes cut a rebuild short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Protocol

from specc.core.contracts import Manifest
from specc.core.files import digest_of, flatten
from specc.core.lock import MachineClass
from specc.core.plan.stages import StageRow, Values, stages, verifier_processes


class Artifacts(Protocol):
    """What a decision must know of a store."""

    def find(self, stage: str, key: str) -> str | None:
        """Return the digest of the artifact of a key, if it is there."""
        ...

    def manifest(self, digest: str) -> Manifest:
        """Return an artifact's manifest."""
        ...

    def last(self, name: str, stage: str) -> Manifest | None:
        """Return the manifest that the last build of the spec `name` had for a stage."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage of a plan: its row, the facets of its numerics class, and its recipe."""

    row: StageRow
    facets: Mapping[str, Any]
    recipe: str

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.row.name

    @property
    def processes(self) -> int:
        """The processes that the stage has at most: its ranks, or workers, each with a verifier that may be spread."""
        if "ranks" in self.facets:  # `2`, or `2x120+1` for two up to step 120, then one
            return max(int(phase.partition("x")[0]) for phase in str(self.facets["ranks"]).split("+"))
        return self.row.workers * int(self.facets.get("tensor_parallel", 1))

    def key(self, names: Mapping[str, str], lineage: Mapping[str, Any]) -> str:
        """Return the stage's key, given what stands for its inputs (`named`) and its ancestors' keys (`lineage`)."""
        return digest_of(
            {
                "stage": self.row.name,
                "version": self.row.version,
                "params": self.params(lineage),
                "inputs": {name: names[stage] for name, stage in self.row.inputs.items()},
                "facets": dict(self.facets),
            }
        )

    def params(self, lineage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job's parameters: the row's, and the ancestors where the stage writes them down."""
        return {**self.row.params, "stages": dict(lineage)} if self.row.lineage else dict(self.row.params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The graph of stages that a resolved spec lowers to, on one class of machine, in the order they run."""

    name: str
    numerics: str
    stages: tuple[PlannedStage, ...]

    @property
    def last(self) -> str:
        """The stage that a plan is for: of a spec the checkpoint, which others measure; of a conversion its end."""
        names = [stage.name for stage in self.stages]
        return "checkpoint" if "checkpoint" in names else names[-1]


@dataclass(frozen=True, slots=True)
class Change:
    """A parameter, facet or input that differs from the last build; None where it was or is absent."""

    path: str
    before: Any
    after: Any
    kind: Literal["value", "engine", "input", "version"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a stage needs: `hit` (its artifact is there), `build`, or `build?` (a hit if its inputs come out the same).

    `stream` is a stage that has no artifact, and is run beside those that read it. `key` is None until the inputs are
    there. `waits_for` are the inputs that are to be built. `changes` say why it is not what the last build of this spec
    had; empty and not a hit means that it was never built, or is gone.
    """

    stage: PlannedStage
    action: Literal["hit", "build", "build?", "stream"]
    key: str | None
    digest: str | None = None
    waits_for: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    last: Manifest | None = None

    @property
    def due(self) -> bool:
        """Whether there is, or may be, something to be built."""
        return self.action in ("build", "build?")


def lower(values: Values, machine: MachineClass, build: str = "") -> Plan:
    """Lower resolved values to a plan for one class of machine; a `build` of a matrix has its name in the plan's."""
    runtime = values["runtime"]
    threads, ranks, spread = runtime["threads"], world(runtime["train"]["ranks"]), verifier_processes(runtime)
    every = machine.facets(threads, ranks, spread)
    planned: dict[str, PlannedStage] = {}
    for row in stages(values):
        facets = {name: every[name] for name in row.facets if name in every}
        inputs = {name: planned[stage].recipe for name, stage in row.inputs.items()}
        said = {"stage": row.name, "version": row.version, "params": row.params, "inputs": inputs, "facets": facets}
        planned[row.name] = PlannedStage(row=row, facets=facets, recipe=_recipe(json.dumps(said, sort_keys=True)))
    numerics = machine.numerics(threads, ranks, spread)
    return Plan(name=plan_name(values, build), numerics=numerics, stages=tuple(planned.values()))


@cache
def _recipe(text: str) -> str:
    """Return the digest of what a text of JSON says: that of canonical JSON, which takes ten times as long to write."""
    return digest_of(json.loads(text))


def plan_name(values: Values, build: str) -> str:
    """Return a plan's name: the speculator's, and after a space the build's if there is a matrix."""
    return f"{values['name']} {build}" if build else str(values["name"])


def world(ranks: int | list[dict[str, int | None]]) -> int | str:
    """Return what a class's name and a key say of the ranks: `2`, or `2x120+1` for two up to step 120, then one."""
    if isinstance(ranks, int):
        return ranks
    return "+".join(f"{phase['ranks']}x{phase['until']}" if phase["until"] else str(phase["ranks"]) for phase in ranks)


def runtime_of(parts: str) -> dict[str, Any]:
    """Return the values of `runtime` that the end of a class's name, such as `2-r2x120+1-v2`, says."""
    threads, _, rest = parts.partition("-r")
    ranks, _, spread = rest.partition("-v")
    phases = [phase.partition("x") for phase in ranks.split("+")]
    several = [{"ranks": int(count), "until": int(end) if end else None} for count, _, end in phases]
    return {
        "threads": int(threads),
        "train": {"ranks": int(ranks) if ranks.isdecimal() else several},
        "datagen": {"tensor_parallel": int(spread or 1)},
    }


def before(stage: PlannedStage) -> PlannedStage | None:
    """Return the stage as it would be without its last change of ranks: what it may take up where that stopped."""
    ranks = stage.facets.get("ranks")
    if not isinstance(ranks, str):
        return None
    earlier = ranks.rpartition("+")[0].rpartition("x")[0]
    return replace(stage, facets={**stage.facets, "ranks": earlier if "+" in earlier else int(earlier)})


def decide(plan: Plan, store: Artifacts, known: dict[str, Decision] | None = None) -> list[Decision]:
    """Decide for every stage, reading only the store's index.

    `known` are decisions by recipes: what another build of the same spec shares with this one is decided once.
    """
    known = {} if known is None else known
    decisions: dict[str, Decision] = {}
    for stage in plan.stages:
        if stage.recipe not in known:
            known[stage.recipe] = decide_stage(plan, stage, decisions, store)
        decisions[stage.name] = known[stage.recipe]
    return list(decisions.values())


def decide_stage(plan: Plan, stage: PlannedStage, earlier: Mapping[str, Decision], store: Artifacts) -> Decision:
    """Decide for one stage, given the decisions (or the finished builds) of those before it."""
    inputs = {name: earlier[name] for name in stage.row.inputs.values()}
    last = store.last(plan.name, stage.name)
    names = named(stage, inputs)
    if len(names) < len(inputs):
        changes = _changes(stage, last, {}, {})
        action = "stream" if stage.row.streamed else "build?" if last is not None and not changes else "build"
        waits_for = tuple(name for name, one in inputs.items() if name not in names and one.action != "stream")
        return Decision(stage=stage, action=action, key=None, waits_for=waits_for, changes=changes, last=last)
    ancestry = lineage(stage, earlier) if stage.row.lineage else {}
    key = stage.key(names, ancestry)
    digest = store.find(stage.name, key)
    if digest is not None:
        return Decision(stage=stage, action="hit", key=key, digest=digest, last=last)
    if stage.row.streamed:
        return Decision(stage=stage, action="stream", key=key, last=last)
    return Decision(stage=stage, action="build", key=key, changes=_changes(stage, last, names, ancestry), last=last)


def named(stage: PlannedStage, earlier: Mapping[str, Decision]) -> dict[str, str]:
    """Return what stands in a stage's key for the stages that make its inputs, less what is not known yet.

    That is the digest of what they made, or their own key, which is known sooner, and of a stream too.
    """
    by_key = stage.row.by_key
    found = {name: earlier[name].key if name in by_key else earlier[name].digest for name in stage.row.inputs.values()}
    return {name: value for name, value in found.items() if value is not None}


def lineage(stage: PlannedStage, earlier: Mapping[str, Decision]) -> dict[str, Any]:
    """Return `{stage: {version, key, inputs}}` of all ancestors, each of which is there."""
    found: dict[str, Any] = {}
    waiting = list(stage.row.inputs.values())
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        decision = earlier[name]
        names = named(decision.stage, earlier)
        found[name] = {
            "version": decision.stage.row.version,
            "key": decision.key,
            "inputs": {slot: names[source] for slot, source in decision.stage.row.inputs.items()},
        }
        waiting += decision.stage.row.inputs.values()
    return dict(sorted(found.items()))


def _changes(
    stage: PlannedStage, last: Manifest | None, names: Mapping[str, str], ancestry: Mapping[str, Any]
) -> tuple[Change, ...]:
    """Return what differs between the last build and now; inputs only where it is known what stands for them."""
    if last is None:
        return ()
    found: list[Change] = []
    if last.version != stage.row.version:
        found.append(Change(stage.name, last.version, stage.row.version, "version"))
    before = flatten({key: value for key, value in last.params.items() if key != "stages"})
    found += [Change(*item, "value") for item in _different(before, flatten(stage.row.params))]
    found += [Change(*item, "engine") for item in _different(last.facets, stage.facets)]
    if names:
        # An earlier release named every input by its digest, which says nothing of a key.
        unknown = {slot for slot, source in stage.row.inputs.items() if source in stage.row.by_key} - set(last.keys)
        now = {slot: names[source] for slot, source in stage.row.inputs.items() if slot not in unknown}
        before = {slot: name for slot, name in {**last.inputs, **last.keys}.items() if slot not in unknown}
        found += [Change(*item, "input") for item in _different(before, now)]
    if ancestry and not found and last.params.get("stages") != ancestry:
        found.append(Change("stages", None, None, "input"))
    return tuple(found)


def _different(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [
        (path, before.get(path), after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]
