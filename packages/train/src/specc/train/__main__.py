"""`python -m specc.train JOB.json`."""

from specc.core.stage import run
from specc.train.draft import train_draft

STAGES = {"draft": train_draft}

if __name__ == "__main__":
    raise SystemExit(run(STAGES))
