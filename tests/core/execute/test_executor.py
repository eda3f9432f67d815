"""Stages as real processes: how they end, how they are stopped, and who holds the lock meanwhile."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.execute import executor
from specc.core.store import Store
from waiting import gone, wait_until

Run = Callable[..., Manifest]

COMPILER = """
import json, sys
from pathlib import Path
from specc.core.contracts import StageJob
from specc.core.errors import SpeccError
from specc.core.execute.executor import run_stage
from specc.core.execute.reporter import Reporter
from specc.core.store import Store

store = Store(Path(sys.argv[1]))
raw = json.loads(sys.argv[2])
job = StageJob(version=1, key="5" * 64, facets={}, inputs={}, files={}, output="", work="",
               units=str(store.units(raw["stage"])), **raw)
try:
    print(run_stage(job, package="toy", store=store, reporter=Reporter(), name="tiny").digest)
except SpeccError as error:
    print(error.render(), file=sys.stderr)
    raise SystemExit(int(error.code))
except KeyboardInterrupt:
    raise SystemExit(130)
"""
"""A compiler that runs one stage, as `specc build` does."""


class Compilers:
    """Compilers in processes of their own, all on one store and one key."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.watch = folder / "watch"
        self.running: list[subprocess.Popen[str]] = []

    def start(
        self, stage: str, seconds: float = 0.0, until: Path | None = None, **params: Any
    ) -> subprocess.Popen[str]:
        context = {"watch": str(self.watch), "seconds": seconds, "until": until and str(until)}
        job = {"stage": stage, "params": params, "context": context}
        process = subprocess.Popen([sys.executable, "-c", COMPILER, str(self.store.root), json.dumps(job)], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        self.running.append(process)
        return process

    def units(self) -> list[tuple[int, int]]:
        """Return (process, shard) of each unit that was begun."""
        lines = self.watch.read_text().splitlines() if self.watch.exists() else []
        return [(int(line.split()[0]), int(line.split()[1])) for line in lines]

    def wait_for_units(self, count: int) -> int:
        """Wait until so many units were begun and return the process of the last."""
        wait_until(lambda: len(self.units()) >= count)
        return self.units()[count - 1][0]


@pytest.fixture
def compilers(store: Store, quick_path: Path) -> Iterator[Compilers]:
    found = Compilers(store, quick_path)
    yield found
    for process in found.running:
        process.kill()
        process.communicate()


def test_a_stage_becomes_an_artifact_with_a_record(run: Run, store: Store, words: io.StringIO) -> None:
    manifest = run("write", {"files": {"a": "1", "sub/b": "2"}})
    assert [path for path, _, _ in manifest.files] == ["a", "sub/b"]
    assert (store.path(manifest.digest) / "sub/b").read_text() == "2"
    record = store.record(manifest.key)
    assert record["rate"] == 2.5
    assert set(record) >= {"rate", "seconds", "started", "host", "order"}
    assert list((store.root / "work").iterdir()) == list((store.root / "tmp").iterdir()) == []
    said = words.getvalue().splitlines()
    assert said[0] == f"write: started (key {manifest.key[:8]})"
    assert "write: a sentence" in said
    assert said[-1].startswith(f"write: sha256:{manifest.digest[:12]}, 2 B, ")


def test_what_is_there_is_not_run_again(run: Run, store: Store) -> None:
    first, second = (run("write", {"files": {"a": "1"}}) for _ in range(2))
    assert first == second
    assert store.log(first.key).read_text().count("---") == 1


def test_a_failure_is_said_in_the_stages_own_words(run: Run, store: Store) -> None:
    with pytest.raises(SpeccError) as caught:
        run("fail", {"code": int(Exit.INPUT)})
    error = caught.value
    assert (error.message, error.where, error.code) == ("row 3 has no messages", "prompts.jsonl:3", Exit.INPUT)
    assert error.note == "in the stage `fail`"
    (log,) = (store.root / "logs").iterdir()
    assert error.hint == f"add one; the whole log is {log}"
    assert list((store.root / "tmp").iterdir()) == []
    (work,) = (store.root / "work").iterdir()
    assert (work / "JOB.json").exists(), "the work of a failed stage is kept"


@pytest.mark.parametrize(
    ("stage", "params", "message"),
    [
        ("crash", {}, "the engine raised ValueError: shapes differ"),
        ("full_disk", {}, "the disk is full"),
        (
            "die",
            {"signal": 9},
            "the stage `die` was killed by SIGKILL, most likely because the machine ran out of memory",
        ),
        ("die", {"signal": 11}, "the stage `die` was killed by SIGSEGV"),
        ("die", {"signal": 40}, "the stage `die` was killed by signal 40"),
        ("leave", {"code": 0}, "the stage `leave` ended with exit code 0 and no result"),
        ("leave", {"code": 7}, "the stage `leave` ended with exit code 7 and no result"),
        ("link", {}, "a symbolic link cannot be part of an artifact"),
        ("nothing", {}, "the stage `nothing` wrote nothing"),
        ("absent", {}, "this package has no stage `absent`"),
    ],
)
def test_however_a_stage_ends_badly_it_is_one_sentence(
    run: Run, store: Store, stage: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpeccError) as caught:
        run(stage, params)
    assert caught.value.message == message
    assert caught.value.code == Exit.STAGE
    assert stage in ("link", "nothing") or str(store.root / "logs") in (caught.value.hint or "")
    assert store.digests() == []


def test_a_stage_whose_package_cannot_be_imported_says_why(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(SpeccError, match="exit code 1 and no result") as caught:
        run("write", {"files": {"a": "1"}})
    assert "No module named specc.toy" in (caught.value.note or "")


def test_an_interpreter_that_is_not_there_is_an_error_in_words(run: Run) -> None:
    with pytest.raises(SpeccError, match="the interpreter `/nowhere/python` cannot be started"):
        run("write", {"files": {"a": "1"}}, interpreter="/nowhere/python")


def test_an_instruction_set_that_this_machine_lacks_is_refused(run: Run) -> None:
    with pytest.raises(SpeccError, match="planned for the class `cuda` with `sm_999`"):
        run("write", {"files": {"a": "1"}}, facets={"device": "cuda", "isa": "sm_999"})


def test_a_stage_gets_its_environment_and_nothing_of_the_callers(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OMP_NUM_THREADS": "7", "TZ": "Asia/Tokyo", "VLLM_USE_V1": "0", "HF_TOKEN": "secret",
                        "LD_PRELOAD": "", "PYTHONHASHSEED": "5", "LC_ALL": "de_DE"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    manifest = run("environment", facets={"threads": 2})
    folder = store.path(manifest.digest)
    found = json.loads((folder / "environment.json").read_text())
    work = (folder / "cwd").read_text()
    assert {name: found[name] for name in ("OMP_NUM_THREADS", "TZ", "PYTHONHASHSEED", "LC_ALL")} == {
        "OMP_NUM_THREADS": "2", "TZ": "UTC", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}  # fmt: skip
    assert not {"LD_PRELOAD", "VLLM_USE_V1", "HF_TOKEN", "USER", "PWD"} & set(found)
    assert found["HOME"] == f"{work}/home"
    assert Path(found["TMPDIR"]) == Path(work, "tmp")
    log = store.log(manifest.key).read_text()
    assert "engine chatter on standard output" in log
    assert "engine chatter on standard error" in log
    assert "printed before the stage took its streams" in log


def test_a_child_that_a_stage_leaves_behind_cannot_touch_the_artifact(run: Run, store: Store) -> None:
    started = time.monotonic()
    manifest = run("orphan")
    assert time.monotonic() - started < 10
    time.sleep(0.1)
    assert store.verify(manifest.digest) == []


def test_other_bytes_from_the_same_key_are_exit_4(run: Run, store: Store) -> None:
    first = run("random")
    store.remove(first.digest)
    with pytest.raises(SpeccError) as caught:
        run("random")
    assert caught.value.code == Exit.DIFFERENCE
    assert first.digest[:12] in caught.value.message


def test_what_is_there_is_built_again_from_its_first_shard_on_when_asked(run: Run, quick_path: Path) -> None:
    context = {"watch": str(quick_path / "watch"), "seconds": 0}
    first = run("slow", {"shards": 2}, context=context)
    assert run("slow", {"shards": 2}, context=context, again=True) == first
    shards = [line.split()[1] for line in (quick_path / "watch").read_text().splitlines()]
    assert shards == ["0", "1", "0", "1"]
    run("random")
    with pytest.raises(SpeccError, match="before from the same key") as caught:
        run("random", again=True)
    assert caught.value.code == Exit.DIFFERENCE


def test_two_compilers_that_race_for_a_key_run_its_stage_once(compilers: Compilers) -> None:
    release = compilers.watch.with_name("release")
    racers = [compilers.start("slow", shards=3, until=release) for _ in range(2)]
    compilers.wait_for_units(1)
    racers.append(late := compilers.start("slow", shards=3, until=release))
    assert late.stderr is not None
    assert late.stderr.readline() == "slow: another process is building it, waiting for that\n"
    release.touch()
    ends = [process.communicate(timeout=30) for process in racers]
    assert [process.returncode for process in racers] == [0, 0, 0], ends
    assert len({output for output, _ in ends}) == 1
    assert len({pid for pid, _ in compilers.units()}) == 1
    assert [shard for _, shard in compilers.units()] == [0, 1, 2]


def test_a_stage_dies_with_its_compiler_and_the_next_goes_on_from_its_last_shard(compilers: Compilers) -> None:
    first = compilers.start("slow", seconds=0.15, shards=4)
    stage = compilers.wait_for_units(3)
    first.kill()
    wait_until(lambda: gone(stage))
    words = compilers.start("slow", seconds=0, shards=4).communicate(timeout=30)
    assert [shard for _, shard in compilers.units()] == [0, 1, 2, 2, 3], "the third shard was half written"
    folder = compilers.store.path(words[0].strip())
    assert [path.read_text() for path in sorted(folder.rglob("*.txt"))] == [f"shard {index}\n" for index in range(4)]


def test_a_stage_holds_the_lock_itself(compilers: Compilers) -> None:
    """A compiler's death is not the stage's end: until the stage is gone, nobody else may work on the key."""
    first = compilers.start("slow", seconds=0.5, shards=1)
    stage = compilers.wait_for_units(1)
    os.kill(stage, signal.SIGSTOP)  # it cannot act on anything but SIGKILL now
    os.kill(first.pid, signal.SIGSTOP)
    second = compilers.start("slow", seconds=0, shards=1)
    time.sleep(0.5)
    assert len(compilers.units()) == 1
    first.kill()
    second.communicate(timeout=30)
    assert second.returncode == 0
    assert gone(stage)
    assert len(compilers.units()) == 2


SIGNALS = [(signal.SIGTERM, Exit.TERMINATED), (signal.SIGINT, Exit.INTERRUPTED), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_an_interrupt_stops_the_stage_and_keeps_its_shards(
    compilers: Compilers, number: signal.Signals, code: Exit
) -> None:
    first = compilers.start("slow", seconds=0.15, shards=3)
    stage = compilers.wait_for_units(2)
    first.send_signal(number)
    first.communicate(timeout=30)
    assert first.returncode == code
    assert gone(stage)
    assert list((compilers.store.root / "tmp").iterdir()) == []
    second = compilers.start("slow", seconds=0, shards=3)
    second.communicate(timeout=30)
    assert second.returncode == 0
    assert [shard for _, shard in compilers.units()] == [0, 1, 1, 2]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_stage_that_hangs_goes_with_its_children_when_the_user_gives_up(
    compilers: Compilers, number: signal.Signals, code: int
) -> None:
    first = compilers.start("hang")
    compilers.wait_for_units(1)
    stage, child = compilers.units()[0]
    first.send_signal(number)
    first.communicate(timeout=30)
    assert first.returncode == code
    assert gone(stage)
    assert gone(child)
    assert list((compilers.store.root / "tmp").iterdir()) == []


def test_a_hangup_that_is_ignored_stays_so(compilers: Compilers) -> None:
    """What `nohup` does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    first = compilers.start("slow", seconds=0.2, shards=2)
    signal.signal(signal.SIGHUP, before)
    compilers.wait_for_units(1)
    first.send_signal(signal.SIGHUP)
    first.communicate(timeout=30)
    assert first.returncode == 0


def test_a_stage_whose_child_is_killed_says_so(run: Run, quick_path: Path) -> None:
    watch = quick_path / "watch"

    def kill() -> None:
        wait_until(lambda: watch.exists() and watch.read_text().endswith("\n"))
        os.kill(int(watch.read_text().split()[0]), signal.SIGKILL)

    helper = threading.Thread(target=kill)
    helper.start()
    with pytest.raises(SpeccError) as caught:
        run("parent", context={"watch": str(watch)})
    helper.join()
    assert "the engine raised CalledProcessError" in caught.value.message
    assert "SIGKILL" in caught.value.message
    assert caught.value.code == Exit.STAGE


NO_EVENTS = [
    "", "{", "null", "[1]", "\xff\xfe\x00", "x" * 100_000, "[" * 100_000, '{"event": ["progress"]}',
    '{"event": "progress"}', '{"event": "progress", "done": "1", "total": 2, "unit": "x"}',
    '{"event": "progress", "done": 1' + "0" * 400 + ', "total": 2, "unit": "x"}',
    '{"event": "progress", "done": 1, "total": NaN, "unit": "x"}',
    '{"event": "progress", "done": 1, "total": 2, "unit": 7}',
    '{"event": "progress", "done": 1, "total": 2, "unit": "x", "text": null}',
    '{"event": "note", "text": 5}', '{"event": "result", "record": [1, 2]}', '{"event": "result"}',
    '{"event": "failure", "message": 5}', '{"event": "failure", "message": "x", "code": []}',
]  # fmt: skip


def test_what_an_engine_prints_on_the_way_of_the_events_goes_to_the_log(run: Run, store: Store) -> None:
    manifest = run("garbage", {"lines": NO_EVENTS, "megabytes": 20})
    assert store.verify(manifest.digest) == []
    record = store.record(manifest.key)
    assert record["rate"] is None, "NaN is no JSON"
    log = store.log(manifest.key).read_bytes()
    assert all(line.encode("latin-1") in log for line in NO_EVENTS)
    assert log.count(b"x") > 20 << 20


def test_a_stage_that_ignores_sigterm_is_killed(run: Run, quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "GRACE", 0.2)
    watch = quick_path / "watch"

    def interrupt() -> None:
        wait_until(lambda: watch.exists() and watch.read_text().endswith("\n"))
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        run("stubborn", context={"watch": str(watch)})
    helper.join()
    assert gone(int(watch.read_text().split()[0]))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handler went with the stage"


def test_a_stage_whose_compiler_died_before_it_could_ask_the_kernel_leaves(store: Store) -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "specc.toy", "JOB.json"], check=False, capture_output=True,
                          env={**os.environ, "SPECC_PARENT": "1"})  # fmt: skip
    assert done.returncode == Exit.TERMINATED


def test_a_log_on_a_full_disk_is_an_error_in_words(run: Run, store: Store) -> None:
    with suppress(SpeccError):
        run("fail", {"code": 3})
    (log,) = (store.root / "logs").iterdir()
    log.unlink()
    log.symlink_to("/dev/full")
    with pytest.raises(SpeccError, match="the disk is full") as caught:
        run("fail", {"code": 3})
    assert caught.value.code == Exit.STAGE
