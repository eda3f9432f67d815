"""The stage's side of the boundary: one process, events on its standard output, everything else in its log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specc.core.contracts import (
    Failure,
    Input,
    Note,
    Progress,
    StageJob,
    StageResult,
    dump_event,
    load_event,
)
from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage, Tell, Unit, run

TOY = Path(__file__).parent / "execute/toy"


@pytest.fixture
def job(tmp_path: Path) -> StageJob:
    for name in ("output", "work", "units"):
        (tmp_path / name).mkdir()
    folders = {name: str(tmp_path / name) for name in ("output", "work", "units")}
    params = {"files": {"a": "1"}}
    return StageJob(stage="write", version=1, key="k" * 64, params=params, facets={}, inputs={}, files={}, **folders)


def toy(job: StageJob, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    path = Path(job.work) / "JOB.json"
    path.write_text(job.dump())
    return subprocess.run([sys.executable, "-P", "-m", "specc.toy", *(arguments or [str(path)])], capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": str(TOY)}, **changes)  # fmt: skip


def events(done: subprocess.CompletedProcess[str]) -> list[object]:
    return [load_event(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_stage_speaks_in_events_and_leaves_its_output(job: StageJob) -> None:
    done = toy(job)
    assert done.returncode == 0
    progress, note, result = events(done)
    assert progress == Progress(done=1, total=1, unit="files", text="a")
    assert note == Note(text="a sentence")
    assert isinstance(result, StageResult)
    assert result.record["rate"] == 2.5
    assert result.record["seconds"] >= 0
    assert (Path(job.output) / "a").read_text() == "1"


def test_what_engines_print_goes_to_the_log(job: StageJob) -> None:
    done = toy(replace(job, stage="environment"))
    assert len(events(done)) == 1
    assert "engine chatter" not in done.stdout
    assert "engine chatter on standard output" in done.stderr
    assert "engine chatter on standard error" in done.stderr


@pytest.mark.parametrize(
    ("stage", "params", "failure", "code"),
    [
        (
            "fail",
            {"code": 1},
            Failure(message="row 3 has no messages", where="prompts.jsonl:3", hint="add one", code=1),
            1,
        ),
        ("crash", {}, Failure(message="the engine raised ValueError: shapes differ"), 3),
        ("refuse", {}, Failure(message="the engine cannot load it", hint="the log has its own words"), 3),
        ("absent", {}, Failure(message="this package has no stage `absent`"), 3),
    ],
)
def test_a_failure_is_the_last_event_and_the_exit_code(
    job: StageJob, stage: str, params: dict[str, Any], failure: Failure, code: int
) -> None:
    done = toy(replace(job, stage=stage, params=params))
    assert events(done)[-1] == failure
    assert done.returncode == code
    assert ("ValueError: shapes differ" in done.stderr) is (stage in {"crash", "refuse"}), (
        "the log keeps what the user is spared"
    )


def test_a_stage_refuses_what_it_does_not_speak(job: StageJob) -> None:
    (failure,) = events(toy(replace(job, contract=2)))
    assert isinstance(failure, Failure)
    assert failure.message == "this stage speaks contract 1 and the job contract 2"
    done = toy(job, "one", "two")
    assert done.returncode == Exit.USAGE
    (failure,) = events(done)
    assert isinstance(failure, Failure)
    assert "takes one argument" in failure.message


def test_a_compiler_that_stopped_listening_does_not_fail_a_stage(job: StageJob) -> None:
    path = Path(job.work) / "JOB.json"
    path.write_text(replace(job, params={"files": {f"{index}": "x" for index in range(2000)}}).dump())
    process = subprocess.Popen([sys.executable, "-m", "specc.toy", str(path)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TOY)})  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, b"")
    assert len(list(Path(job.output).iterdir())) == 2000


def test_memory_is_named_when_it_is_what_ran_out(job: StageJob, capfd: pytest.CaptureFixture[str]) -> None:
    def hungry(_: Stage) -> None:
        raise MemoryError

    path = Path(job.work) / "JOB.json"
    path.write_text(job.dump())
    # In a child: `run` moves file descriptors and binds the process to its parent's life.
    child = os.fork()
    if child == 0:
        os._exit(run({"write": hungry}, [str(path)]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == Exit.STAGE
    assert json.loads(capfd.readouterr().out)["message"] == "the stage ran out of memory"


def test_a_job_and_its_events_read_back(job: StageJob, tmp_path: Path) -> None:
    rich = replace(job, inputs={"verifier": Input(path="/v", digest="d")}, files={"a.jsonl": "/a"}, context={"x": 1})
    (tmp_path / "JOB.json").write_text(rich.dump())
    assert StageJob.load(tmp_path / "JOB.json") == rich
    said = [Progress(done=1.5, total=None, unit="rows"), Note(text="x", level="warning"), StageResult(record={"a": 1}),
            Failure(message="m")]  # fmt: skip
    assert [load_event(dump_event(event)) for event in said] == said
    for line in ("", "3", "{}", '{"event": "song"}', "[1]"):
        with pytest.raises(ValueError, match=r"."):
            load_event(line)


def test_a_stage_finds_its_inputs_and_files_by_name(job: StageJob) -> None:
    said: list[object] = []
    stage = Stage(replace(job, inputs={"verifier": Input(path="/v", digest="d")}, files={"a.jsonl": "/a"}), said.append)
    assert (stage.input("verifier"), stage.file("a.jsonl")) == (Path("/v"), Path("/a"))
    stage.warn("careful")
    stage.progress(1, 2, "rows")
    assert said == [Note(text="careful", level="warning"), Progress(done=1, total=2, unit="rows")]


@pytest.fixture
def writer(job: StageJob, tmp_path: Path) -> Callable[[str, list[str]], list[bool]]:
    """Run the units of a stage under a key and return which were there already."""

    def write(key: str, shards: list[str]) -> list[bool]:
        output = tmp_path / key
        output.mkdir()
        stage = Stage(replace(job, key=key, output=str(output)), lambda event: None)
        units = [
            Unit(name=f"shards/{index:05}.jsonl", material={"rows": rows}, amount=1,
                 write=lambda path, _, rows=rows: path.write_text(rows) and None)
            for index, rows in enumerate(shards)
        ]  # fmt: skip
        made = stage.units(units, "rows")
        return [unit.name not in made for unit in units]

    return write


def test_appended_data_takes_over_the_shards_it_shares(
    writer: Callable[[str, list[str]], list[bool]], tmp_path: Path
) -> None:
    assert writer("first", ["a", "b"]) == [False, False]
    assert writer("second", ["a", "b", "c"]) == [True, True, False]
    assert writer("third", ["b", "a"]) == [True, True], "a unit's place is not part of it"
    assert [path.read_text() for path in sorted((tmp_path / "third/shards").iterdir())] == ["b", "a"]
    assert (tmp_path / "first/shards/00000.jsonl").samefile(tmp_path / "second/shards/00000.jsonl")


def test_a_unit_that_fails_leaves_no_name(job: StageJob) -> None:
    def fail(path: Path, _: Tell) -> None:
        path.write_text("half")
        raise SpeccError("no")

    stage = Stage(job, lambda event: None)
    with pytest.raises(SpeccError):
        stage.units([Unit(name="a", material={}, amount=1, write=fail)], "rows")
    assert [path.name for path in Path(job.units).rglob("*") if path.is_file()] == ["claims"]
    assert list(Path(job.work).iterdir()) == []
