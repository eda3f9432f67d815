"""`python -m specc.evaluate JOB.json`."""

from specc.core.stage import run
from specc.evaluate.evaluation import evaluation

if __name__ == "__main__":
    raise SystemExit(run({"evaluation": evaluation}))
