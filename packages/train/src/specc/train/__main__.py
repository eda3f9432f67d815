"""`python -m specc.train JOB.json`."""

import sys

from specc.core.stage import Stage, run
from specc.train.launch import launch
from specc.train.phases import phase_of, run_phases


def train_draft(stage: Stage) -> None:
    """Train; the engines are imported here, so that a job that cannot be read is refused at once."""
    phase = phase_of(stage.facets.get("ranks", 1))
    if phase is None:
        run_phases(stage)
        return
    from specc.train.draft import train_draft

    train_draft(stage, phase)


STAGES = {"draft": train_draft}

if __name__ == "__main__":
    launch(sys.argv[1:])
    raise SystemExit(run(STAGES))
