"""A process that is killed at any of its writes leaves nothing half-named, and the next one goes on from there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safetensor import one_tensor
from specc.core.contracts import StageJob
from specc.core.files import entries
from specc.core.stage import Stage, Tell, Unit
from specc.core.store import Store

WRITES = {"os.chmod", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "shutil.rmtree"}
KEY = "k" * 64
FILES = {"index.json": b"{}\n", "shards/00000.safetensors": one_tensor()}


def killed_at(write: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that kills itself (SIGKILL) at its n-th write to a disk; tell if it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                count += 1
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


def build(store: Store, files: dict[str, bytes] = FILES) -> str:
    """Do what the executor does with one key, the stage's part included."""
    with store.lock(KEY, lambda: None):
        if (digest := store.find("draft", KEY)) is not None:
            return digest
        job = StageJob(stage="draft", version=1, key=KEY, params={}, facets={}, inputs={}, files={}, output="",
                       work=str(store.work("draft", KEY)), units=str(store.units("draft")))  # fmt: skip
        output = store.begin("draft", KEY)
        for name, data in files.items():
            path = output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return store.seal(job, "tiny", output, {"seconds": 1}).digest


def whole(store: Store, digest: str) -> None:
    """Assert that everything with a name in the store is whole."""
    folders = list(store.root.glob("*-draft-*"))
    assert [path.name[:12] for path in folders] in ([], [digest[:12]])
    for path in folders:
        assert sorted(entry.path for entry in entries(path)) == sorted(FILES)
        assert store.verify(digest) == []
    assert store.find("draft", KEY) in (None, digest)
    if store.find("draft", KEY):
        assert store.record(KEY)["seconds"] == 1


def test_a_build_killed_at_any_write_leaves_nothing_half_named(quick_path: Path) -> None:
    digest = build(Store(quick_path / "untouched"))
    points, found = 0, set[bool]()
    while True:
        store = Store(quick_path / f"{points}")
        killed = killed_at(points + 1, lambda store=store: build(store))
        reopened = Store(store.root)
        whole(reopened, digest)
        found.add(reopened.find("draft", KEY) is not None)
        assert build(reopened) == digest
        whole(reopened, digest)
        assert list((store.root / "tmp").iterdir()) == [], "what the killed process left was removed"
        assert store.path(digest).stat().st_mode & 0o777 == 0o555
        if not killed:
            break
        points += 1
    assert points > 30
    assert found == {False, True}


def test_a_removal_killed_at_any_write_leaves_an_artifact_or_none(quick_path: Path) -> None:
    points = 0
    while True:
        store = Store(quick_path / f"{points}")
        digest = build(store)
        killed = killed_at(points + 1, lambda store=store, digest=digest: store.remove(digest))
        reopened = Store(store.root)
        assert reopened.digests() in ([digest], [])
        if reopened.digests():
            assert reopened.verify(digest) == []
        assert build(reopened) == digest
        if not killed:
            break
        points += 1
    assert points > 5


def test_a_repair_killed_at_any_write_leaves_a_whole_artifact_or_none(quick_path: Path) -> None:
    points = 0
    while True:
        store = Store(quick_path / f"{points}")
        digest = build(store)
        folder = store.path(digest)
        folder.chmod(0o755)
        (folder / "index.json").unlink()
        assert store.find("draft", KEY) is None
        killed = killed_at(points + 1, lambda store=store: build(store))
        reopened = Store(store.root)
        if reopened.find("draft", KEY) is not None:
            whole(reopened, digest)
        assert build(reopened) == digest
        whole(reopened, digest)
        assert not [path for path in (store.root / "tmp").iterdir() if not path.name.startswith("removed-")]
        if not killed:
            break
        points += 1
    assert points > 30


@pytest.fixture
def stage(quick_path: Path) -> Callable[[], Stage]:
    store = Store(quick_path / "store")

    def make() -> Stage:
        job = StageJob(stage="tokens", version=1, key=KEY, params={}, facets={}, inputs={}, files={},
                       output=str(store.begin("tokens", KEY)), work=str(store.work("tokens", KEY)),
                       units=str(store.units("tokens")))  # fmt: skip
        return Stage(job, lambda event: None)

    return make


def put(stage: Stage, material: dict[str, Any], name: str, write: Callable[[Path, Tell], None]) -> bool:
    """Put a unit into a stage's output; return whether it was there already."""
    return not stage.units([Unit(name=name, material=material, amount=1, write=write)], "units")


def test_a_unit_killed_at_any_write_is_written_again_or_taken_whole(stage: Callable[[], Stage]) -> None:
    def write(path: Path, _: Tell) -> None:
        path.write_bytes(b"half")
        path.write_bytes(b"whole")

    taken: list[bool] = []
    points = 0
    while True:
        here, material = stage(), {"point": points}
        killed = killed_at(points + 1, lambda here=here, material=material: put(here, material, "a/b.bin", write))
        again = stage()
        taken.append(put(again, material, "a/b.bin", write))
        assert (again.output / "a/b.bin").read_bytes() == b"whole"
        assert put(stage(), material, "a/b.bin", write), "and now it is there"
        if not killed:
            break
        points += 1
    assert not taken[0]
    assert taken[-1]
    units = [path.name for path in Path(again.job.units).rglob("*") if path.is_file()]
    assert not [name for name in units if name.endswith(".bin.tmp")], "half a shard stays in the key's own work folder"


def test_a_unit_whose_bytes_have_changed_is_written_again(stage: Callable[[], Stage]) -> None:
    first = stage()
    assert not put(first, {}, "a.bin", lambda path, _: path.write_bytes(b"whole") and None)
    (unit,) = Path(first.job.units).rglob("*.bin")
    unit.write_bytes(b"while")
    again = stage()
    assert not put(again, {}, "a.bin", lambda path, _: path.write_bytes(b"whole") and None)
    assert (again.output / "a.bin").read_bytes() == b"whole"


def test_units_of_other_facets_or_versions_are_other_units(stage: Callable[[], Stage]) -> None:
    from dataclasses import replace

    here = stage()
    assert not put(here, {"shard": 0}, "a", lambda path, _: path.write_bytes(b"1") and None)
    for changed in ({"facets": {"threads": 2}}, {"version": 2}):
        other = Stage(replace(here.job, **changed), lambda event: None)  # pyright: ignore
        assert not put(other, {"shard": 0}, "b", lambda path, _: path.write_bytes(b"2") and None)
