"""Processes beside a stage's main one: they share its work, and its end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specc.core.contracts import Manifest, Progress, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.execute.attendants import DEATHS, Attendant, workers
from specc.core.execute.executor import run_stage
from specc.core.execute.reporter import Reporter
from specc.core.files import digest_of
from specc.core.store import Store
from waiting import gone, wait_until


class Watched(Reporter):
    """A reporter that keeps the progress it is told of."""

    def __init__(self, stream: io.StringIO) -> None:
        super().__init__(stream)
        self.seen: list[Progress] = []

    def progress(self, event: Progress) -> None:
        self.seen.append(event)
        super().progress(event)


class Floor:
    """Runs toy stages with attendants; `watch` is the file in which each process says what it is at."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.watch = store, folder / "watch"
        self.words = io.StringIO()
        self.reporter = Watched(self.words)

    def job(self, stage: str, params: dict[str, Any], **context: Any) -> StageJob:
        key = digest_of({"stage": stage, "params": params})
        context = {"watch": str(self.watch), **context}
        return StageJob(stage=stage, version=1, key=key, params=params, facets={}, inputs={}, files={}, output="",
                        work="", units=str(self.store.units(stage)), context=context)  # fmt: skip

    def run(self, job: StageJob, attendants: list[Attendant], **options: Any) -> Manifest:
        return run_stage(job, package="toy", store=self.store, reporter=self.reporter, name="tiny",
                         attendants=attendants, **options)  # fmt: skip

    def lines(self) -> list[list[str]]:
        """Return what was said, of each line the process and what follows it."""
        return [line.split() for line in self.watch.read_text().splitlines()] if self.watch.exists() else []

    def kill(self, when: Callable[[list[list[str]]], list[str] | None]) -> threading.Thread:
        """Kill the process of the line that `when` finds, once it finds one."""

        def wait() -> None:
            wait_until(lambda: when(self.lines()) is not None)
            os.kill(int((when(self.lines()) or [""])[0]), signal.SIGKILL)

        helper = threading.Thread(target=wait)
        helper.start()
        return helper


@pytest.fixture
def floor(store: Store, quick_path: Path) -> Floor:
    return Floor(store, quick_path)


def second(lines: list[list[str]]) -> list[str] | None:
    """Return the first line of the second process that made a shard."""
    return next((line for line in lines if line[0] != lines[0][0]), None)


def test_workers_make_the_shards_of_one_artifact(floor: Floor) -> None:
    shards, release = 10, floor.watch.with_name("release")
    job, beside = workers(floor.job("slow", {"shards": shards}, seconds=0, until=str(release)), "toy", 3)
    threading.Thread(
        target=lambda: (wait_until(lambda: len({pid for pid, _ in floor.lines()}) == 3), release.touch())
    ).start()
    manifest = floor.run(job, beside)
    assert sorted(int(shard) for _, shard in floor.lines()) == list(range(shards)), "each was made once"
    assert len({pid for pid, _ in floor.lines()}) == 3
    done = [event.done for event in floor.reporter.seen]
    assert done == sorted(done)
    assert (done[0], done[-1], floor.reporter.seen[-1].total) == (0, shards, shards)
    assert floor.store.record(manifest.key)["workers"] == 3
    assert list((floor.store.root / "work").iterdir()) == []
    logs = floor.store.log(job.key).with_suffix("")
    assert sorted(path.name for path in logs.iterdir()) == ["worker-1.log", "worker-2.log"]
    alone = floor.run(floor.job("slow", {"shards": shards}, seconds=0), [], again=True)
    assert alone.digest == manifest.digest


def test_a_killed_workers_shard_is_made_by_another(floor: Floor) -> None:
    release = floor.watch.with_name("release")
    job, beside = workers(floor.job("slow", {"shards": 4}, seconds=0, until=str(release)), "toy", 2)
    helper = floor.kill(second)
    threading.Thread(
        target=lambda: (helper.join(), wait_until(lambda: len(floor.lines()) > 2), release.touch())
    ).start()
    manifest = floor.run(job, beside)
    killed, shard = second(floor.lines()) or ["", ""]
    assert next(pid for pid, other in floor.lines() if other == shard) == killed
    assert len([pid for pid, other in floor.lines() if other == shard]) == 2
    assert "`worker-1` was killed by SIGKILL, and is started again" in floor.words.getvalue()
    folder = floor.store.path(manifest.digest)
    assert [path.read_text() for path in sorted(folder.rglob("*.txt"))] == [f"shard {index}\n" for index in range(4)]


def test_a_killed_main_process_leaves_the_shards_of_all(floor: Floor) -> None:
    job, beside = workers(floor.job("slow", {"shards": 8}, seconds=0.4), "toy", 2)
    helper = floor.kill(lambda lines: lines[0] if len(lines) >= 4 else None)
    with pytest.raises(SpeccError, match="the stage `slow` was killed by SIGKILL"):
        floor.run(job, beside)
    helper.join()
    before = floor.lines()
    assert all(gone(int(pid)) for pid, _ in before)
    finished = len(list((floor.store.root / "units/slow").glob("??/*.txt")))
    assert finished >= 2
    floor.run(job, beside)
    assert len(floor.lines()) - len(before) == 8 - finished


def attendant(floor: Floor, *does: str, name: str = "helper", unit: str = "steps") -> Attendant:
    return Attendant(name=name, package="toy", job=floor.job("beside", {}, does=does, name=name, unit=unit))


def main_job(floor: Floor) -> StageJob:
    return floor.job("beside", {}, does=[str(floor.watch.with_name("end"))])


def test_an_attendants_own_words_are_the_stages(floor: Floor) -> None:
    with pytest.raises(SpeccError, match="a worker's own words") as caught:
        floor.run(main_job(floor), [attendant(floor, "/nowhere", name="other"), attendant(floor, "fail")])
    assert caught.value.note == "in the stage `beside`"
    assert (
        caught.value.hint
        == f"do this; the whole log is {floor.store.log(main_job(floor).key).with_suffix('')}/helper.log"
    )
    assert len(floor.lines()) == 3
    assert all(gone(int(line[0])) for line in floor.lines())


def test_an_attendant_that_leaves_without_a_word_is_a_failure(floor: Floor) -> None:
    with pytest.raises(SpeccError, match="the stage `beside` ended with exit code 7 and no result"):
        floor.run(main_job(floor), [attendant(floor, "leave")])


def test_one_that_dies_again_and_again_is_given_up(floor: Floor) -> None:
    starting = floor.job("beside", {}, does=["die"], name="helper")
    with pytest.raises(SpeccError, match="the stage `beside` was killed by SIGKILL") as caught:
        floor.run(main_job(floor), [Attendant(name="helper", package="toy", job=starting)])
    assert caught.value.code == Exit.STAGE
    assert [line[1] for line in floor.lines()] == ["main", *["helper"] * (DEATHS + 1)]


def test_attendants_end_with_the_main_process(floor: Floor) -> None:
    end = floor.watch.with_name("end")
    beside = [attendant(floor, "note", "progress", "/nowhere", name=name) for name in ("one", "two")]
    other = attendant(floor, "progress", "/nowhere", name="three", unit="shards")
    threading.Thread(
        target=lambda: (wait_until(lambda: any(e.done == 8 for e in floor.reporter.seen)), end.touch())
    ).start()
    floor.run(main_job(floor), [*beside, other])
    assert all(gone(int(line[0])) for line in floor.lines())
    assert [Path(line[2]).name for line in floor.lines()[1:]] == [line[1] for line in floor.lines()[1:]]
    assert max(event.done for event in floor.reporter.seen) == 8, "shards are no steps"
    assert floor.words.getvalue().count("the same sentence") == 1


COMPILER = """
import sys
from pathlib import Path
from specc.core.contracts import StageJob
from specc.core.execute.attendants import Attendant
from specc.core.execute.executor import run_stage
from specc.core.execute.reporter import Reporter
from specc.core.store import Store

store = Store(Path(sys.argv[1]))
job, other = (StageJob.load(Path(path)) for path in sys.argv[2:])
run_stage(job, package="toy", store=store, reporter=Reporter(), name="tiny",
          attendants=[Attendant(name="helper", package="toy", job=other)])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_attendant_outlives_the_compiler(floor: Floor, number: signal.Signals, quick_path: Path) -> None:
    paths = [quick_path / "main.json", quick_path / "helper.json"]
    for path, job in zip(paths, (main_job(floor), attendant(floor, "/nowhere").job), strict=True):
        path.write_text(job.dump())
    with subprocess.Popen([sys.executable, "-c", COMPILER, str(floor.store.root), *map(str, paths)],
                          stderr=subprocess.DEVNULL) as compiler:  # fmt: skip
        wait_until(lambda: len(floor.lines()) == 2)
        compiler.send_signal(number)
        compiler.wait(20)
    wait_until(lambda: all(gone(int(line[0])) for line in floor.lines()))
    if number != signal.SIGKILL:
        assert list((floor.store.root / "tmp").iterdir()) == []
    assert (
        json.loads((next((floor.store.root / "work").iterdir()) / "helper/JOB.json").read_text())["stage"] == "beside"
    )
