"""A training that changes its number of ranks: phases, each in processes of its own, one after another."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from specc.core.contracts import Failure, Note, Progress, StageResult, load_event
from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage

NUMBER: Final = "SPECC_PHASE"
"""What a process that has a part in one phase of several finds its number in."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a training: its number from 0, its ranks, and the optimizer step it ends after (None: the last)."""

    number: int
    ranks: int
    until: int | None


def phases_of(ranks: int | str) -> list[Phase]:
    """Return the phases that the facet `ranks` stands for: `2`, or `2x120+1` for two up to step 120, then one."""
    parts = [part.partition("x") for part in str(ranks).split("+")]
    return [Phase(number, int(count), int(end) if end else None) for number, (count, _, end) in enumerate(parts)]


def phase_of(ranks: int | str) -> Phase | None:
    """Return the phase that this process has a part in; None if there are several and it is to run them."""
    phases = phases_of(ranks)
    return phases[int(os.environ.get(NUMBER, "0"))] if NUMBER in os.environ or len(phases) == 1 else None


def run_phases(stage: Stage) -> None:
    """Run each phase in a process of its own, and pass on what it says; the last one writes the stage's output.

    Raises `SpeccError` for the first failure.
    """
    from specc.train.checkpoints import Checkpoints

    earlier = stage.job.context.get("earlier")
    for phase in phases_of(stage.facets["ranks"]):
        if phase.until is not None and earlier and (Path(earlier["work"]) / "checkpoints" / str(phase.number)).is_dir():
            checkpoints = Checkpoints.of(stage.work, phase.number, stage.job.key)
            checkpoints.take_up(Checkpoints.of(Path(earlier["work"]), phase.number, earlier["key"]), phase.until)
        _run(stage, phase)


def _run(stage: Stage, phase: Phase) -> None:
    command = [sys.executable, "-P", "-m", "specc.train", *sys.argv[1:]]
    own = {"SPECC_PARENT": str(os.getpid()), NUMBER: str(phase.number)}
    end: StageResult | Failure | None = None
    with subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            match load_event(line):
                case Progress() as event:
                    stage.progress(event.done, event.total, event.unit, event.text)
                case Note() as event:
                    (stage.warn if event.level == "warning" else stage.note)(event.text)
                case StageResult() | Failure() as event:
                    end = event
    if isinstance(end, Failure):
        raise SpeccError(end.message, where=end.where, hint=end.hint, code=Exit(end.code))
    if end is None or process.returncode:
        what = f"phase {phase.number + 1} ({phase.ranks} ranks)"
        raise SpeccError(f"{what} of the training ended with exit code {process.returncode}", code=Exit.STAGE)
    stage.record.update(end.record)
