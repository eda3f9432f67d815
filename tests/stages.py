"""Runs one stage of the pipeline in a test, in this process or as the compiler does in its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specc.core.contracts import Event, Input, StageJob, load_event
from specc.core.files import directory_digest, entries
from specc.core.stage import Stage


def make_job(
    stage: str,
    folder: Path,
    params: Mapping[str, Any],
    *,
    inputs: Mapping[str, Path] | None = None,
    files: Mapping[str, Path] | None = None,
    facets: Mapping[str, Any] | None = None,
    output: str = "output",
) -> StageJob:
    """Return a job that writes into a fresh `folder/output`; its units are shared by all jobs of `folder`."""
    for name in (output, "work", "units"):
        if name == output:
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True, exist_ok=True)
    return StageJob(
        stage=stage,
        version=1,
        key="0" * 64,
        params=params,
        facets=facets or {},
        inputs={
            name: Input(path=str(path), digest=directory_digest(entries(path))) for name, path in (inputs or {}).items()
        },
        files={name: str(path) for name, path in (files or {}).items()},
        output=str(folder / output),
        work=str(folder / "work"),
        units=str(folder / "units"),
    )


def run_here(function: Callable[[Stage], None], job: StageJob) -> list[Event]:
    """Run a stage's function in this process and return what it reported; its errors are raised."""
    events: list[Event] = []
    function(Stage(job, events.append))
    return events


def run_process(package: str, job: StageJob, folder: Path, **environment: str) -> tuple[int, list[Event], str]:
    """Run `python -m specc.<package> JOB.json` and return its exit code, its events and its log."""
    path = folder / "job.json"
    path.write_text(job.dump())
    done = subprocess.run(
        [sys.executable, "-m", f"specc.{package}", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=job.work,
        env={"PATH": os.environ["PATH"], "TOKENIZERS_PARALLELISM": "false", **environment},
    )
    return done.returncode, [load_event(line) for line in done.stdout.splitlines()], done.stderr
