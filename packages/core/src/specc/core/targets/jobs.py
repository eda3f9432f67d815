"""The stages of a plan as jobs for other machines: what each runs, waits for and needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specc.core.plan import Plan, PlannedStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A stage as a cluster sees it.

    `number` counts from 1 in an order in which each job comes after those it `needs`, which are stages too. `hub`
    tells whether it may have to reach a model hub. `engine` tells whether it runs a model, for which it takes `gpus`
    devices if the class of machine has them; `cpus` are cores. `workers` is the number of processes that make its
    shards, which share cores and devices evenly, and may be on several machines.
    """

    stage: str
    number: int
    needs: tuple[str, ...]
    hub: bool
    engine: bool
    cpus: int
    gpus: int
    workers: int = 1

    @property
    def name(self) -> str:
        """Number and stage, as files of the job are called."""
        return f"{self.number:02}-{self.label}"

    @property
    def label(self) -> str:
        """The stage's name where no underscore may stand."""
        return self.stage.replace("_", "-")

    @property
    def arguments(self) -> tuple[str, ...]:
        """What stands between `specc` and the project's own arguments to build the stage, plain words all of them.

        The lock decides, as on any other machine, and nothing is fetched but by the stage whose work that is.
        """
        return ("build", "--frozen", *(() if self.hub else ("--offline",)), "--stage", self.stage)


def jobs_of(plan: Plan) -> tuple[Job, ...]:
    """Return the jobs of a plan, in its order."""
    streamed = {stage.name: stage for stage in plan.stages if stage.row.streamed}
    alone = [stage for stage in plan.stages if stage.name not in streamed]
    return tuple(_job(number, stage, streamed) for number, stage in enumerate(alone, start=1))


def _job(number: int, stage: PlannedStage, streamed: Mapping[str, PlannedStage]) -> Job:
    """Return a stage's job; what it streams runs in it and needs what it needs."""
    beside = [streamed[name] for name in stage.row.inputs.values() if name in streamed]
    together = [stage, *beside]
    needs = [name for one in (*beside, stage) for name in one.row.inputs.values() if name not in streamed]
    processes = [(one.facets, one.processes) for one in together]
    return Job(
        stage=stage.name,
        number=number,
        needs=tuple(dict.fromkeys(needs)),
        hub="hub" in stage.row.context,
        engine="device" in stage.facets,
        cpus=sum(count * int(facets.get("threads", 1)) for facets, count in processes),
        gpus=sum(count for facets, count in processes if facets.get("device") == "cuda"),
        workers=stage.row.workers,
    )
