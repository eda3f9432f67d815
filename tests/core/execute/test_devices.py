"""Which GPUs and cores the processes of a stage have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from specc.core.contracts import StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.execute.devices import VISIBLE, cores_of, gpus_of
from specc.core.execute.executor import run_stage
from specc.core.execute.reporter import Reporter
from specc.core.store import Store


def job_of(facets: dict[str, Any], context: dict[str, Any], *, key: str = "5", units: str = "") -> StageJob:
    return StageJob(stage="environment", version=1, key=key * 64, params={}, facets=facets, inputs={}, files={},
                    output="", work="", units=units, context=context)  # fmt: skip


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The driver's folder on a machine with four GPUs, of which the caller has chosen none."""
    monkeypatch.delenv(VISIBLE, raising=False)
    for name in range(4):
        (tmp_path / f"gpus/0000:0{name}:00.0").mkdir(parents=True)
    return tmp_path / "gpus"


@pytest.mark.parametrize(
    ("caller", "facets", "context", "expected"),
    [
        (None, {}, {}, None),
        ("2,3", {}, {}, "2,3"),
        (None, {}, {"devices": [1, 3]}, "1,3"),
        ("GPU-a, GPU-b", {}, {"devices": [1]}, "GPU-b"),
        # Each worker has its own, without a word in the spec.
        (None, {}, {"share": (0, 4)}, "0"),
        (None, {}, {"share": (3, 4)}, "3"),
        ("5,6,7,8", {"tensor_parallel": 2}, {"share": (1, 2)}, "7,8"),
        (None, {"tensor_parallel": 2}, {"share": (1, 2), "devices": [3, 2, 1, 0]}, "1,0"),
        (None, {}, {"share": (1, 2), "devices": [0, 1, 2, 3]}, "2,3"),
    ],
)
def test_each_process_sees_its_part_of_the_gpus(  # noqa: PLR0917 - one line of the table
    caller: str | None, facets: dict[str, Any], context: dict[str, Any], expected: str | None, driver: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if caller is not None:
        monkeypatch.setenv(VISIBLE, caller)
    job = job_of({"device": "cuda", **facets}, context)
    assert (gpus_of(job, driver), cores_of(job)) == (expected, None)


def test_without_a_driver_that_tells_they_are_taken_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    assert gpus_of(job_of({"device": "cuda"}, {"share": (5, 8)}), tmp_path / "none") == "5"


@pytest.mark.parametrize(
    ("caller", "context", "words"),
    [
        (None, {"devices": [0, 4]}, "`environment` is to have GPU 4, counted from 0, and this build may use 4"),
        ("6", {"devices": [1]}, "GPU 1, counted from 0, and this build may use 1"),
        ("", {"share": (0, 2)}, "GPU 1, counted from 0, and this build may use 0"),
        (None, {"share": (0, 5)}, "GPU 4, counted from 0, and this build may use 4"),
    ],
)
def test_more_gpus_than_there_are_is_said_before_an_engine_starts(
    caller: str | None, context: dict[str, Any], words: str, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if caller is not None:
        monkeypatch.setenv(VISIBLE, caller)
    with pytest.raises(SpeccError) as caught:
        gpus_of(job_of({"device": "cuda"}, context), driver)
    assert words in caught.value.message
    assert caught.value.code == Exit.STAGE


def test_what_runs_no_model_is_given_no_device() -> None:
    assert (gpus_of(job_of({}, {"devices": [0]})), cores_of(job_of({}, {"devices": [0]}))) == (None, None)
    assert gpus_of(job_of({"device": "cpu"}, {"devices": [0]})) is None


def test_a_process_on_a_cpu_runs_on_its_cores_alone(store: Store, quick_path: Path) -> None:
    """Counted among those that this process may use, and in the process that runs, not in what it was meant to have."""
    units = str(store.units("environment"))
    for number, core in enumerate(sorted(os.sched_getaffinity(0))[:2]):
        context = {"devices": [0, 1], "share": (number, 2)}
        job = job_of({"device": "cpu"}, context, key=f"{number}", units=units)
        manifest = run_stage(job, package="toy", store=store, reporter=Reporter(), name="tiny")
        assert json.loads((store.path(manifest.digest) / "cores.json").read_text()) == [core]
