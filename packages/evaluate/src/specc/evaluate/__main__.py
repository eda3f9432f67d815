"""`python -m specc.evaluate JOB.json`."""

from specc.core.stage import run
from specc.evaluate.benchmark import benchmark
from specc.evaluate.evaluation import evaluation
from specc.evaluate.fetch import prompts

if __name__ == "__main__":
    raise SystemExit(run({"prompts": prompts, "evaluation": evaluation, "benchmark": benchmark}))
