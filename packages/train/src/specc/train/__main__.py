"""`python -m specc.train JOB.json`."""

import os

from specc.core.stage import Stage, run


def train_draft(stage: Stage) -> None:
    """Load the engines and train."""
    # Threads that wait for each other by spinning are ten times slower as soon as anything else runs on their
    # core. OpenMP reads this once, when torch is loaded; it has no effect on results.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from specc.train.draft import train_draft

    train_draft(stage)


STAGES = {"draft": train_draft}

if __name__ == "__main__":
    raise SystemExit(run(STAGES))
