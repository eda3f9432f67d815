"""`python -m specc.train JOB.json`."""

import sys

from specc.core.stage import Stage, run
from specc.train.launch import launch


def train_draft(stage: Stage) -> None:
    """Train; the engines are imported here, so that a job that cannot be read is refused at once."""
    from specc.train.draft import train_draft

    train_draft(stage)


STAGES = {"draft": train_draft}

if __name__ == "__main__":
    launch(sys.argv[1:])
    raise SystemExit(run(STAGES))
