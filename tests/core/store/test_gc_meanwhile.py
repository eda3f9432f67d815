"""`gc` at every point of a build: the build stops there, all of `gc` runs, and the build goes on and ends well."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specc.core.contracts import StageJob
from specc.core.files import remove_tree
from specc.core.stage import Stage, Unit
from specc.core.store import Store, garbage, sweep

POINTS = {
    "os.chmod", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "shutil.rmtree", "open",
    "fcntl.flock",
}  # fmt: skip
KEY = "k" * 64


def child(work: Callable[[], object], stop_at: int = 0) -> int:
    """Do `work` in a process of its own, which stops (SIGSTOP) before its n-th step; return its number."""
    process = os.fork()
    if process:
        return process
    count, code = 0, 1

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal count
        if event in POINTS:
            count += 1
            if count == stop_at:
                os.kill(os.getpid(), signal.SIGSTOP)

    try:
        if stop_at:
            sys.addaudithook(hook)
        work()
        code = 0
    except BaseException as error:
        print(f"at step {stop_at}: {error!r}", file=sys.__stderr__)
        raise
    finally:
        os._exit(code)


def collect(store: Store) -> None:
    """Do what `specc gc --keep-last 0 --unfinished` does in another project."""
    with store.lock("gc", lambda: None):
        sweep(store, garbage(store, (), keep_last=0, unfinished=True))


def at_every_step(
    root: Path, prepare: Callable[[Store], object], stopped: Callable[[Store], object], other: Callable[[Store], object]
) -> int:
    """Stop one process before each of its steps in turn while another works; both must end well.

    Returns how many steps there were.
    """
    step = 0
    while True:
        step += 1
        store = Store(root / f"{step}")
        prepare(store)
        one = child(lambda store=store: stopped(store), step)
        _, status = os.waitpid(one, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return step - 1
        two = child(lambda store=store: other(store))
        deadline, ended = time.monotonic() + 0.05, 0
        while not ended and time.monotonic() < deadline:  # it may wait for a lock that the stopped one holds
            ended, status = os.waitpid(two, os.WNOHANG)
            time.sleep(0.001)
        os.kill(one, signal.SIGCONT)
        _, status = (ended, status) if ended else os.waitpid(two, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"while the other one was at step {step}"
        assert os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) == 0, f"after step {step}"
        remove_tree(store.root)


def run(store: Store) -> str:
    """Do what the executor and a stage with one shard do with a key."""
    with store.lock(KEY, lambda: None):
        if (digest := store.find("tokens", KEY)) is not None:
            return digest
        output, work = store.begin("tokens", KEY), store.work("tokens", KEY)
        (work / "tmp").mkdir(exist_ok=True)
        job = StageJob(stage="tokens", version=1, key=KEY, params={}, facets={}, inputs={}, files={},
                       output=str(output), work=str(work), units=str(store.units("tokens")))  # fmt: skip
        unit = Unit(name="shards/0.txt", material={}, amount=1, write=lambda path, _: path.write_text("shard") and None)
        Stage(job, lambda event: None).units([unit], "shards")
        (work / "checkpoint").write_text("to go on from")
        assert (work / "checkpoint").exists()
        digest = store.seal(job, "tiny", output, {}).digest
        remove_tree(work)
        return digest


def build(store: Store) -> None:
    """Do what the builder does with a stage, and read what was built."""
    with store.lease() as hold:
        go_on(store, hold)


def go_on(store: Store, hold: Callable[[str], None]) -> None:
    """Do the part of it that comes after the build began."""
    held = False
    while not held:
        digest = run(store)
        hold(digest)
        held = store.find("tokens", KEY) == digest
    collect(store)
    assert (store.path(digest) / "shards/0.txt").read_text() == "shard"
    store.note_last("tiny", "tokens", store.manifest(digest, KEY))


@contextmanager
def open_lease(store: Store) -> Generator[Callable[[str], None]]:
    """Have a lease from before `gc` began, which is what `Store.lease` gives when nobody holds the lock."""
    with (store.root / "leases/0-before").open("wb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def hold(digest: str) -> None:
            with store.lock("gc", lambda: None):
                file.write(f"{digest}\n".encode())

        yield hold


def leave(store: Store) -> None:
    """Leave what a killed build would go on from: a finished shard that no artifact has, and a work folder."""
    run(store)
    store.remove(store.digests()[0])
    (store.work("tokens", KEY) / "half").write_text("")
    (store.root / "leases").mkdir(exist_ok=True)


def test_all_of_gc_at_any_step_of_a_build(quick_path: Path) -> None:
    assert at_every_step(quick_path, leave, build, collect) > 40


def test_all_of_a_build_at_any_step_of_gc(quick_path: Path) -> None:
    """The build began before `gc` did, so it does not wait at its beginning."""

    def begun(store: Store) -> None:
        with open_lease(store) as hold:
            go_on(store, hold)

    assert at_every_step(quick_path, leave, collect, begun) > 10


def test_all_of_gc_at_any_step_of_a_rebuild_in_a_store_of_its_own(quick_path: Path) -> None:
    def again(store: Store) -> None:
        with store.scratch() as fresh:
            (fresh.root / "mark").touch()
            collect(store)
            assert (fresh.root / "mark").exists()
            remove_tree(fresh.root)

    assert at_every_step(quick_path, lambda store: store.begin("tokens", KEY), again, collect) > 10
