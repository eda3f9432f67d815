"""A package of toy stages, and a store to run them in."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from specc.core.contracts import Manifest, StageJob
from specc.core.execute.executor import run_stage
from specc.core.execute.reporter import Reporter
from specc.core.files import digest_of
from specc.core.store import Store

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PYTHONPATH", str(TOY))
    return Store(quick_path / "store")


def make_job(stage: str, params: Mapping[str, Any] | None = None, **changes: Any) -> StageJob:
    """Return a job whose key is made of its stage and parameters."""
    params = dict(params or {})
    values: dict[str, Any] = {"facets": {}, "inputs": {}, "files": {}, "output": "", "work": "", "units": "", **changes}
    return StageJob(stage=stage, version=1, key=digest_of({"stage": stage, "params": params}), params=params, **values)


Run = Callable[..., Manifest]


@pytest.fixture
def words() -> io.StringIO:
    """What the reporter says."""
    return io.StringIO()


@pytest.fixture
def run(store: Store, words: io.StringIO) -> Run:
    """Run a toy stage in this process's store."""

    def run(stage: str, params: Mapping[str, Any] | None = None, **changes: Any) -> Manifest:
        interpreter, again = changes.pop("interpreter", sys.executable), changes.pop("again", False)
        job = make_job(stage, params, units=str(store.units(stage)), **changes)
        return run_stage(job, package="toy", store=store, reporter=Reporter(words), name="tiny",
                         interpreter=interpreter, again=again)  # fmt: skip

    return run
