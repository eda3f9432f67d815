"""`python -m specc.train JOB.json`."""

import os


def main() -> int:
    """Run the stage that the job names."""
    # Threads that wait for each other by spinning are ten times slower as soon as anything else runs on their
    # core; OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from specc.core.stage import run
    from specc.train.draft import train_draft

    return run({"draft": train_draft})


if __name__ == "__main__":
    raise SystemExit(main())
