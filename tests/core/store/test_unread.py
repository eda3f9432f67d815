"""An artifact that did not change is not read again: by no command that decides, and by no build that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from projects import Project, make_project
from specc.core.contracts import StageJob
from specc.core.errors import SpeccError
from specc.core.store import Store

SIZE = 100_000_000
"""Bytes of the artifact, a hole: it takes no disk, and reading it is counted as any reading."""
OTHERWISE = 5_000_000
"""Bytes that a command may read: its modules, the spec, the lock, manifests."""


class Read:
    """Bytes that this process read."""

    count = 0


@contextmanager
def reading() -> Iterator[Read]:
    """Count the bytes that are read inside (`rchar` of proc(5))."""
    found, before = Read(), _rchar()
    yield found
    found.count = _rchar() - before


def _rchar() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture
def project(quick_path: Path) -> Project:
    found = make_project(quick_path / "project")
    found.build()
    return found


@pytest.fixture
def large(project: Project) -> str:
    """The digest of an artifact of SIZE bytes in the project's store."""
    store = Store(project.store)
    key = "5" * 64
    job = StageJob(stage="hidden_states", version=1, key=key, params={}, facets={}, inputs={}, files={}, output="",
                   work="", units="")  # fmt: skip
    output = store.begin(job.stage, key)
    with (output / "shard").open("wb") as file:
        file.truncate(SIZE)
    with reading() as read:
        digest = store.seal(job, "tiny", output, {}).digest
    assert read.count >= SIZE, "sealing hashes it, once"
    return digest


def test_a_build_that_uses_it_hashes_it_no_more(project: Project, large: str) -> None:
    with reading() as read:
        Store(project.store).require(large, "hidden_states")
    assert read.count < OTHERWISE


@pytest.mark.parametrize("command", ["plan", "status", "build --stage vocabulary"])
def test_a_command_that_decides_reads_none_of_it(project: Project, large: str, command: str) -> None:
    with reading() as read:
        project.run(*command.split(), "tiny.yaml")
    assert large in Store(project.store).digests()
    assert read.count < OTHERWISE


def test_one_that_was_touched_is_read_again_and_one_that_changed_is_refused(project: Project, large: str) -> None:
    file = project.artifact("hidden_states") / "shard"
    file.touch()
    with reading() as read:
        Store(project.store).require(large, "hidden_states")
    assert read.count >= SIZE
    with file.open("r+b") as changed:
        changed.write(b"x")
    with reading() as read, pytest.raises(SpeccError, match="is damaged"):
        Store(project.store).require(large, "hidden_states")
    assert read.count >= SIZE


def test_verify_reads_all_of_it(project: Project, large: str) -> None:
    with reading() as read:
        assert Store(project.store).verify(large) == []
    assert read.count >= SIZE
