"""A training that changes its number of ranks: phases, each in processes of its own, one after another."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
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

    Begins with the last phase that has a checkpoint. Raises `SpeccError` for the first failure.
    """
    from specc.train.checkpoints import Checkpoints

    phases = phases_of(stage.facets["ranks"])
    ours = [Checkpoints.of(stage.work, phase.number, stage.job.key) for phase in phases]
    if (earlier := stage.job.context.get("earlier")) is not None:
        for phase, checkpoints in zip(phases, ours, strict=True):
            if phase.until is not None:
                checkpoints.take_up(Checkpoints.of(Path(earlier["work"]), phase.number, earlier["key"]), phase.until)
    for phase in phases[_first(phases, [checkpoints.step(stage.warn) for checkpoints in ours]) :]:
        _run(stage, phase)


def _first(phases: list[Phase], steps: list[int | None]) -> int:
    """Return the number of the phase to begin with, given the step after which each phase's checkpoint stands."""
    begun = [
        phase.number + (step == phase.until) for phase, step in zip(phases, steps, strict=True) if step is not None
    ]
    return max(begun, default=0)


def _run(stage: Stage, phase: Phase) -> None:
    command = [sys.executable, "-P", "-m", "specc.train", *sys.argv[1:]]
    own = {"SPECC_PARENT": str(os.getpid()), NUMBER: str(phase.number), "MASTER_PORT": str(_free_port())}
    end: StageResult | Failure | None = None
    with subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            with suppress(ValueError):  # printed before the phase turned its output away from the pipe
                match load_event(line.decode()):
                    case Progress() as event:
                        stage.progress(event.done, event.total, event.unit, event.text)
                    case Note() as event:
                        (stage.warn if event.level == "warning" else stage.note)(event.text)
                    case StageResult() | Failure() as event:
                        end = event
    if isinstance(end, Failure):
        raise SpeccError(end.message, where=end.where, hint=end.hint, code=Exit(end.code))
    if process.returncode < 0:
        os.kill(os.getpid(), -process.returncode)  # die as it did: the compiler knows what to say of that
    if end is None or process.returncode:
        what = f"phase {phase.number + 1} ({phase.ranks} ranks)"
        raise SpeccError(f"{what} of the training ended with exit code {process.returncode}", code=Exit.STAGE)
    stage.record.setdefault("phases", []).append({"ranks": phase.ranks, **end.record})


def _free_port() -> int:
    """Return a port that nothing listens on now: the one that the stage was given may be taken hours later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
