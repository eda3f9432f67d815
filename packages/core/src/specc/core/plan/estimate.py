"""What each stage will take, by arithmetic over the locked values and by what earlier runs took here.

    seconds = start + FLOPs / rate          stages that run a model
    seconds = bytes / rate                  the others

The rate is that of the most similar run that the store has a record of from this machine; without one it is declared
in `specc.core.plan.rates`. What a unit of work that an earlier build has finished will save is not known before its
stage runs (see `specc.core.stage.Stage.units`), so that more data may take less than is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from specc.core.lock import MachineClass
from specc.core.plan.corpus import INDEXED, Corpus, count, indexes, look_into
from specc.core.plan.costs import COSTS, TOKENS, alive, captures, decoded, sizes
from specc.core.plan.plan import Plan
from specc.core.plan.rates import Run, declared, most_similar, resident, runs_here, scaled, stand_ins
from specc.core.plan.stages import Values
from specc.core.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a stage will take."""

    seconds: float
    disk: int
    """Bytes of the artifact, and of what is streamed to the stage at most."""
    memory: int
    """Bytes, peak resident, of all ranks."""
    tokens: int | None
    """Tokens that the stage computes, None where it computes none."""
    flops: float | None
    """Floating-point operations, None where there is no model."""
    measured: bool
    """Whether the rate was measured on this machine (earlier run records of the store), else it is declared."""
    complete: bool = True
    """False where a data file's rows could not be counted, or an endpoint was never asked: numbers are too low."""


NOTHING: Final = Estimate(seconds=0.0, disk=0, memory=0, tokens=None, flops=None, measured=True)
"""What a streamed stage takes by itself: all of it is in what its reader takes."""


class Estimator:
    """Estimates the builds of one spec; a stage that several of them share is reckoned once."""

    def __init__(self, machine: MachineClass, store: Store | None) -> None:
        self.machine = machine
        self.store = store
        self._runs: dict[str, list[Run]] | None = None
        self._known: dict[str, Estimate] = {}
        self._indexes: dict[tuple[str, ...], Mapping[str, Any]] = {}
        self._look = cache(look_into)

    def estimates(self, plan: Plan, values: Values, files: Mapping[str, Path] | None = None) -> dict[str, Estimate]:
        """Return what every stage of a plan will take on the class of machine, by their recipes, in the order they run.

        `values` are those that were lowered to it. `files` are the places of the files that they name
        (`ResolvedSpec.files`). Of a data file that is not there, rows are known only from the spec, or from artifacts
        of the plan that are in the store. Nothing is raised.
        """
        if any(stage.recipe not in self._known for stage in plan.stages):
            self._known |= self._new(plan, values, files or {})
        return {stage.recipe: self._known[stage.recipe] for stage in plan.stages}

    def _new(self, plan: Plan, values: Values, files: Mapping[str, Path]) -> dict[str, Estimate]:
        """Return the estimates of a plan's stages by their recipes."""
        if self._runs is None:
            self._runs = runs_here(self.store, self.machine)
        made = tuple(stage.recipe for stage in plan.stages if stage.name in INDEXED)
        if made not in self._indexes:
            self._indexes[made] = indexes(plan, self.store)
        corpus = decoded(values, count(values, files, self._indexes[made], self._look), self.machine.device)
        disks = sizes(values, files, corpus)
        found: dict[str, Estimate] = {}
        for stage in plan.stages:
            if stage.recipe in self._known:
                continue
            name = stage.name
            remote = "endpoint" in stage.row.context  # another machine computes, and nobody knows how fast
            cost = None if remote else COSTS.get(name)
            flops = cost(values, corpus) if cost else None
            tokens = TOKENS[name](values, corpus) if name in TOKENS else None
            amount = (
                tokens if (cost or remote) and tokens is not None else disks["tokens" if name == "vocabulary" else name]
            )
            streamed = "stream" in stage.row.context
            runs = self._runs.get(name) or stand_ins(name, self._runs)
            runs = [run for run in runs if run.remote == remote and run.streamed <= streamed]
            run = most_similar(stage, [run for run in runs if run.streamed == streamed] or runs)
            seconds = run and scaled(run, stage, corpus, amount, flops)
            own = (run and run.memory(stage)) or round(
                resident("conversations" if remote else name, values, self.machine, disks, stage.processes)
            )
            found[stage.recipe] = Estimate(
                seconds=seconds
                if seconds is not None
                else 0.0
                if remote
                else declared(name, values, self.machine, amount, flops, processes=stage.processes),
                disk=round(disks[name]),
                memory=stage.processes * own,
                tokens=None if tokens is None else round(tokens),
                flops=flops,
                measured=seconds is not None,
                complete=(corpus.complete or name in ("verifier", "converted", "checkpoint", "stitched"))
                and not (remote and seconds is None),
            )
            if streamed:
                source = next(one for one in plan.stages if one.row.streamed)
                beside, found[source.recipe] = found[source.recipe], NOTHING
                counted = run is not None and seconds is not None and run.streamed  # its run waited for them
                found[stage.recipe] = _streamed(found[stage.recipe], beside, values, corpus, counted=counted,
                                                together=self.machine.device == "cpu")  # fmt: skip
        return found


def _streamed(
    own: Estimate, beside: Estimate, values: Values, corpus: Corpus, *, counted: bool, together: bool
) -> Estimate:
    """Return what training takes with the hidden states that are computed beside it; `together` on the same cores."""
    seconds, share = own.seconds, alive(values["data"], corpus.rows, corpus.held)
    if not counted:
        capture = beside.seconds * captures(values, corpus)
        seconds = own.seconds + capture if together else max(own.seconds, capture)
    return replace(own, seconds=seconds, disk=own.disk + round(beside.disk * share),
                   memory=own.memory + beside.memory, complete=own.complete and beside.complete,
                   measured=own.measured and (counted or beside.measured))  # fmt: skip


def total(parts: Iterable[Estimate]) -> Estimate:
    """Return what stages take one after another: the sum of everything, save for memory, of which it is the most."""
    every = list(parts)
    return Estimate(
        seconds=sum(part.seconds for part in every),
        disk=sum(part.disk for part in every),
        memory=max((part.memory for part in every), default=0),
        tokens=sum(part.tokens or 0 for part in every),
        flops=sum(part.flops or 0.0 for part in every),
        measured=all(part.measured for part in every),
        complete=all(part.complete for part in every),
    )
