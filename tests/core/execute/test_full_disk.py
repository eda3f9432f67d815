"""A full disk, wherever it is met: a sentence that names it, nothing half-written, and then the build goes on."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disks import PAGE, fill, mounted
from projects import Project, leftovers, make_project
from specc.core.contracts import Manifest, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.execute.executor import run_stage
from specc.core.execute.reporter import Reporter
from specc.core.files import digest_of, remove_tree
from specc.core.store import Store

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def disk(quick_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    with mounted(quick_path / "disk") as folder:
        yield folder


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manifest]:
    """Run a toy stage in a store."""
    monkeypatch.setenv("PYTHONPATH", str(TOY))

    def run(store: Store, stage: str, **params: object) -> Manifest:
        job = StageJob(stage=stage, version=1, key=digest_of([stage, params]), params=params, facets={}, inputs={},
                       files={}, output="", work="", units=str(store.units(stage)))  # fmt: skip
        return run_stage(job, package="toy", store=store, reporter=Reporter(io.StringIO()), name="tiny")

    return run


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a build with room enough comes to."""
    return make_project(tmp_path_factory.mktemp("room")).build()


def says_so(error: SpeccError, disk: Path) -> None:
    assert error.message == "the disk is full"
    assert error.code == Exit.STAGE
    assert f"free some space on `{disk}` (`df -h {disk}`, `df -i {disk}`)" in (error.hint or "")


FILES = {"a.txt": "a" * 5000, "shards/b.txt": "b" * 9000}


def test_a_disk_that_is_full_at_any_write_of_a_stage_or_of_its_sealing(
    disk: Path, toy: Callable[..., Manifest]
) -> None:
    digest, seen = toy(Store(disk / "first"), "write", files=FILES).digest, set[str]()
    remove_tree(disk / "first")
    for pages in range(60):
        store = Store(disk / "store")
        filler = fill(disk, pages * PAGE)
        try:
            toy(store, "write", files=FILES)
        except SpeccError as error:
            says_so(error, disk)
            seen.add((error.note or "the compiler").split("\n")[0])
            assert leftovers(store.root) == []
            assert store.find("write", digest_of(["write", {"files": FILES}])) is None
            filler.unlink()
            assert toy(store, "write", files=FILES).digest == digest
            assert store.verify(digest) == []
            remove_tree(store.root)
        else:
            break
        finally:
            filler.unlink(missing_ok=True)
    else:
        pytest.fail("the disk was always full")
    assert pages > 8
    assert seen == {"in the stage `write`", "the compiler"}


def test_a_disk_that_has_bytes_and_no_more_files(quick_path: Path, toy: Callable[..., Manifest]) -> None:
    """Inodes run out before bytes do on a disk of many small files."""
    with mounted(quick_path / "disk", size="1m,nr_inodes=64") as disk:
        for left in range(2, 40, 3):
            store = Store(disk / "store")
            spare = [disk / f"{index}" for index in range(os.statvfs(disk).f_ffree - left)]
            for path in spare:
                path.touch()
            try:
                digest = toy(store, "write", files=FILES).digest
            except SpeccError as error:
                says_so(error, disk)
                for path in spare:
                    path.unlink()
                assert leftovers(store.root) == []
                digest = toy(store, "write", files=FILES).digest
            else:
                assert left > 20
                return
            assert store.verify(digest) == []
            remove_tree(store.root)
        pytest.fail("there was never an inode to be had")


def test_a_file_that_is_mapped_into_memory_dies_of_sigbus_where_there_is_no_room(
    disk: Path, toy: Callable[..., Manifest]
) -> None:
    store = Store(disk / "store")
    with pytest.raises(SpeccError) as caught:
        toy(store, "mapped")
    message = "the stage `mapped` was killed by SIGBUS, most likely because the disk is full"
    assert (caught.value.message, caught.value.code) == (message, Exit.STAGE)
    assert f"free some space on `{disk}` (`df -h {disk}`); the whole log is" in (caught.value.hint or "")
    assert leftovers(store.root) == []


def test_an_engine_that_cannot_even_say_so_in_its_log(disk: Path, toy: Callable[..., Manifest]) -> None:
    store = Store(disk / "store")
    with pytest.raises(SpeccError) as caught:
        toy(store, "glutton")
    says_so(SpeccError(caught.value.message, hint=caught.value.hint, code=caught.value.code), disk)
    assert caught.value.note == "in the stage `glutton`"
    assert leftovers(store.root) == []
    assert toy(store, "write", files=FILES), "what the stage wrote is gone, so there is room"


def test_a_real_build_at_any_level_of_its_disk(disk: Path, quick_path: Path, expected: dict[str, str]) -> None:
    """The tokens are written by safetensors, whose error is not Python's."""
    project = make_project(quick_path / "project", disk / "store")
    seen = set[str]()
    for pages in range(8, 80, 6):
        filler = fill(disk, pages * PAGE)
        done = project.specc("build", "--stage", "vocabulary", "tiny.yaml", expect=None)
        filler.unlink()
        assert leftovers(project.store) == []
        if done.returncode == 0:
            break
        assert done.returncode == Exit.STAGE, done.stderr
        error = done.stderr[done.stderr.index("error: ") :]
        assert error.startswith(f"error: {project.store}"), error
        assert ": the disk is full\n" in error
        assert f"\n\nhint: free some space on `{disk}`" in error
        seen |= {line.strip() for line in error.splitlines() if line.startswith("  in the stage")}
    assert "in the stage `tokens`" in seen
    assert project.build() == expected


@pytest.fixture
def project(quick_path: Path) -> Iterator[Project]:
    """A project that is itself on the small disk, with its store elsewhere."""
    with mounted(quick_path / "disk", in_place=True) as folder:
        yield make_project(folder / "project", quick_path / "store")


def test_a_lock_that_cannot_be_written_stops_a_build_before_it_starts(project: Project) -> None:
    disk = project.folder.parent
    filler = fill(disk)
    _, err = project.run("build", "--stage", "conversations", "tiny.yaml", expect=Exit.STAGE)
    assert err == (
        "error: tiny.lock.json: the disk is full\n"
        f"\nhint: free some space on `{disk}` (`df -h {disk}`, `df -i {disk}`), or build with `--locked`, which writes"
        " no lock\n"
    )
    assert sorted(path.name for path in project.folder.iterdir()) == ["prompts.jsonl", "tiny", "tiny.yaml"]
    filler.unlink()
    digests = project.build("conversations")
    before = (project.folder / "tiny.lock.json").read_bytes()
    filler = fill(disk)
    _, err = project.run("build", "--stage", "tokens", "tiny.yaml", expect=Exit.STAGE)
    assert "tokens: sha256:" in err, "it was built, and what cannot be noted is in the store"
    assert err.endswith("which writes no lock\n")
    assert (project.folder / "tiny.lock.json").read_bytes() == before
    filler.unlink()
    _, err = project.run("build", "--stage", "tokens", "tiny.yaml")
    assert "nothing to do" in err
    (results,) = json.loads((project.folder / "tiny.lock.json").read_text())["results"].values()
    assert results["conversations"] == digests["conversations"]
    assert "tokens" in results


def test_a_build_with_nothing_to_do_changes_nothing_on_a_disk(quick_path: Path) -> None:
    project = make_project(quick_path / "project")
    project.build()

    def written() -> dict[str, int]:
        files = [path for path in project.folder.rglob("*") if path.is_file() and path.name != "digests"]
        return {str(path): path.stat().st_mtime_ns for path in files}  # the cache takes a file in once it is 2 s old

    before = written()
    project.build()
    assert written() == before


@pytest.mark.parametrize("limit", [100, 900, 2000, 4000, 6000, 12_000])
def test_a_limit_on_the_size_of_a_file(quick_path: Path, expected: dict[str, str], limit: int) -> None:
    """`ulimit -f`, which needs nobody's leave: the system refuses a write in the middle, as a full disk does."""
    project = make_project(quick_path / "project")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(project.command("build", "--stage", "vocabulary", "tiny.yaml"), check=False,
                          preexec_fn=limited, **project.options())  # fmt: skip
    assert done.returncode == Exit.STAGE, done.stderr
    assert "Traceback" not in done.stderr
    assert "a file would be larger than this process may write\n" in done.stderr
    assert "\nhint: raise the limit that `ulimit -f` shows" in done.stderr
    assert leftovers(project.store) == []
    assert not [path for path in project.folder.iterdir() if path.name.endswith(".tmp")]
    assert project.build() == expected


def test_words_that_cannot_be_written_do_not_stop_a_build(quick_path: Path) -> None:
    """Standard error on a full disk, or a terminal that is gone."""
    project = make_project(quick_path / "project")
    with Path("/dev/full").open("w") as full:
        options = {**project.options(), "capture_output": False, "stdout": subprocess.PIPE, "stderr": full}
        done = subprocess.run(project.command("build", "--json", "--stage", "tokens", "tiny.yaml"), check=False,
                              **options)  # fmt: skip
    assert json.loads(done.stdout)["artifacts"].keys() == {"verifier", "conversations", "tokens"}
