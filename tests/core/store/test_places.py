"""Where a store may be: on another file system than its project, read-only, another user's, without hard links."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from disks import mounted
from projects import BUILT, Project, leftovers, make_project
from small import write_prompts
from specc.core.errors import Exit, SpeccError
from specc.core.files import remove_tree
from specc.core.store import Store, garbage

NOBODY = 65534
AS_NOBODY = (
    "/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)  # fmt: skip
"""Starts a command as another user, who may read all (root's interpreter may lie where nobody else gets) and write
only what is theirs."""


@pytest.fixture
def project(quick_path: Path) -> Project:
    project = make_project(quick_path / "project", quick_path / "store")
    project.build()
    return project


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_store_on_another_file_system_than_its_project(tmp_path: Path, quick_path: Path) -> None:
    with mounted(quick_path / "disk", size="4m") as disk:
        project = make_project(tmp_path / "project", disk / "store")
        assert os.stat(project.folder).st_dev != os.stat(disk).st_dev  # noqa: PTH116
        digests = project.build()
        assert digests == make_project(quick_path / "other").build()
        assert leftovers(project.store) == []
        assert not (project.folder / ".specc").exists()


def test_a_store_without_hard_links_holds_shards_twice(quick_path: Path) -> None:
    """A folder that is mounted for a second time: link(2) and rename(2) refuse to go from one mount to the other."""
    project = make_project(quick_path / "project", quick_path / "store")
    units = project.store / "units"
    units.mkdir(parents=True)
    with mounted(units, source=units, in_place=True):
        with pytest.raises(OSError, match="Invalid cross-device link"):
            os.link(project.folder / "tiny.yaml", units / "tiny.yaml")
        digests = project.build()
        assert digests == make_project(quick_path / "other").build()
        shards = [path for path in (project.store / "units").rglob("*") if path.suffix == ".safetensors"]
        assert len(shards) == 5
        assert {path.stat().st_nlink for path in shards} == {1}
        remove_tree(project.artifact("tokens"))
        for path in shards[1:]:
            path.write_bytes(b"not what was sealed")
        assert project.build() == digests
        assert Store(project.store).verify(digests["tokens"]) == []
        assert leftovers(project.store) == []
        project.run("gc", "--keep-last", "0", "--unfinished")
        assert not [path for path in units.glob("*/??/*") if path.suffix != ".sha256"]
        assert project.build() == digests


def read_only(project: Project) -> None:
    """Assert what can be done with a whole store that cannot be written, and that nothing changes in it."""
    before = tree(project.store)
    digest = Store(project.store).resolve(next(project.store.glob("*-tokens-*")).name)
    assert project.specc("plan", "tiny.yaml").stdout.count("hit") == len(BUILT) + 1
    assert project.specc("status", "tiny.yaml").stdout.count("current") == len(BUILT)
    assert digest in project.specc("show", digest[:12]).stdout
    assert "vocabulary sha256:" in project.specc("show", "tiny.yaml").stdout
    assert "every bit is the same" in project.specc("verify", digest).stderr
    assert project.specc("logs", "tiny.yaml", "tokens").stdout
    done = project.specc("build", "--stage", "vocabulary", "tiny.yaml")
    assert "nothing to do: vocabulary sha256:" in done.stderr
    assert "started" not in done.stderr
    assert tree(project.store) == before


def refused(project: Project, message: str) -> None:
    """Assert that what has to write says in one sentence that it cannot."""
    before = tree(project.store)
    digest = next(project.store.glob("*-vocabulary-*")).name[:12]
    write_prompts(project.folder / "prompts.jsonl", 48, answers=True)
    for command in (["build", "--stage", "conversations", "tiny.yaml"],
                    ["build", "--force", "--stage", "vocabulary", "tiny.yaml"], ["gc"],
                    ["verify", "--rebuild", digest]):  # fmt: skip
        done = project.specc(*command, expect=Exit.STAGE)
        assert f": {message}\n" in done.stderr
        assert "name another folder in `SPECC_STORE`" in done.stderr
        assert done.stderr.startswith(f"error: {project.store}")
    assert tree(project.store) == before


def test_a_read_only_store_can_be_read_and_a_build_that_finds_all_in_it_is_a_success(
    project: Project, quick_path: Path
) -> None:
    with mounted(quick_path / "shared", source=project.store, options="ro") as shared:
        here = Project(project.folder, shared)
        read_only(here)
        # Another spec that shares the stages: there is nothing of it in the store, and nothing is left there.
        spec = project.folder / "tiny.yaml"
        spec.write_text(spec.read_text().replace("name: tiny", "name: other"))
        (project.folder / "tiny.lock.json").unlink()
        assert "nothing to do" in here.specc("build", "--stage", "vocabulary", "tiny.yaml").stderr
        (results,) = json.loads((project.folder / "tiny.lock.json").read_text())["results"].values()
        assert set(results) == set(BUILT)
        refused(here, "this file system is read-only")
    assert project.build(), "and where it can be written all of it goes on"


def test_a_read_only_disk_as_a_whole(project: Project, quick_path: Path) -> None:
    """The project too: its lock is there already, so there is nothing to write."""
    with mounted(quick_path / "shared", source=quick_path, options="ro", in_place=True) as shared:
        read_only(Project(shared / "project", shared / "store"))
        spec = project.folder / "tiny.yaml"
        spec.write_text(spec.read_text() + "# a comment\n")
        assert "nothing to do" in Project(shared / "project", shared / "store").specc(
            "build", "--stage", "vocabulary", "tiny.yaml"
        ).stderr  # fmt: skip
        write_prompts(project.folder / "prompts.jsonl", 48, answers=True)
        done = Project(shared / "project", shared / "store").specc("build", "tiny.yaml", expect=Exit.STAGE)
        assert done.stderr.startswith("error: tiny.lock.json: this file system is read-only\n")
        assert "build with `--locked`, which writes no lock" in done.stderr


def test_a_store_that_belongs_to_another_user(project: Project) -> None:
    if os.geteuid() == 0:
        for path in (project.folder, *project.folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        project = Project(project.folder, project.store, AS_NOBODY)
    else:  # modes bind anyone but root
        for path in project.store.rglob("*"):
            path.chmod(path.stat().st_mode & ~0o222)
        project.store.chmod(0o555)
    read_only(project)
    refused(project, "no permission to write here")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_two_users_who_may_both_write_share_a_store(project: Project, quick_path: Path) -> None:
    """The kernel does not let one link to the other's file (fs.protected_hardlinks), so shards are copied."""
    theirs = Project(make_project(quick_path / "theirs").folder, project.store, AS_NOBODY)
    write_prompts(theirs.folder / "prompts.jsonl", 48, answers=True)
    for path in (project.store, *project.store.rglob("*")):
        if path.is_dir() and not path.name.endswith("-tiny"):
            path.chmod(0o777)
    for path in [*project.store.glob("locks/*"), *project.store.glob("units/*/claims"), project.store / "digests"]:
        path.chmod(0o666)
    for path in (theirs.folder, *theirs.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    done = theirs.specc("build", "--json", "--stage", "tokens", "tiny.yaml")
    digest = json.loads(done.stdout)["artifacts"]["tokens"].removeprefix("sha256:")
    store = Store(project.store)
    assert store.verify(digest) == []
    first = store.path(digest) / "shards/00000.safetensors"
    assert first.stat().st_uid == NOBODY
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1":
        assert first.stat().st_nlink == 1
    assert leftovers(project.store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_what_another_users_build_needs_and_does_not_show_stops_gc(project: Project, quick_path: Path) -> None:
    quick_path.chmod(0o755)
    store = Store(project.store)
    with store.lease() as hold:
        hold(store.digests()[0])
        (lease,) = (project.store / "leases").iterdir()
        for mode, code in ((0o644, 0), (0o600, 7)):
            lease.chmod(mode)
            child = os.fork()
            if child == 0:
                found = 9
                try:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                    garbage(store, (), keep_last=0, unfinished=False)
                    found = 0
                except SpeccError as error:
                    found = 7 if "another user needs cannot be read" in error.message else 8
                finally:
                    os._exit(found)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
