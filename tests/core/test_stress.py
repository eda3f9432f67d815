"""Many `specc` at once on one store: all of them end well, and what they leave is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from projects import SPEC, Project, leftovers, make_project, processes_of
from small import write_prompts
from specc.core.store import Store

MANY = 50
SECONDS = 300
"""What no test may take, however busy the machine is."""


@pytest.fixture
def project(quick_path: Path) -> Iterator[Project]:
    yield make_project(quick_path / "project", quick_path / "store")
    assert processes_of(quick_path) == [], "nothing runs on"


def another(project: Project, name: str, rows: int = 0) -> Project:
    """Return a project with another spec and the same store; with `rows` of its own, else with the same data."""
    folder = project.folder.parent / name
    other = Project(make_project(folder).folder, project.store)
    (folder / "tiny.yaml").write_text(SPEC.replace("name: tiny", f"name: {name}"))
    if rows:
        write_prompts(folder / "prompts.jsonl", rows, answers=True)
    return other


def finish(builds: list[subprocess.Popen[str]], meanwhile: Callable[[], object] = lambda: None) -> list[str]:
    """Wait for all, doing something meanwhile; return what each one said. All must have ended well."""
    deadline = time.monotonic() + SECONDS
    try:
        while any(build.poll() is None for build in builds):
            assert time.monotonic() < deadline, "they wait for one another"
            meanwhile()
            time.sleep(0.01)
    finally:
        for build in builds:
            build.kill()
    said = ["\n".join(build.communicate()) for build in builds]
    assert [build.returncode for build in builds] == [0] * len(builds), "\n".join(said)
    assert not [words for words in said if "Traceback" in words]
    return said


def started(said: list[str]) -> Counter[str]:
    """Count how often each stage was run."""
    return Counter(line.split(":")[0] for words in said for line in words.splitlines() if ": started (" in line)


def whole(project: Project, left: str = "") -> None:
    """Assert that every file that says something and every artifact is whole, and that nothing but `left` is left."""
    store = Store(project.store)
    for path in [path for path in project.store.rglob("*.json") if path.parts[-2] != "shards"]:
        json.loads(path.read_text())
    for digest in store.digests():
        assert store.verify(digest) == []
    assert [path for path in leftovers(project.store) if not left or left not in path] == []


def lock_of(project: Project) -> dict[str, str]:
    """Return what the lock says that builds found."""
    (results,) = json.loads((project.folder / "tiny.lock.json").read_text())["results"].values()
    return results


@contextmanager
def long_build(project: Project) -> Iterator[subprocess.Popen[str]]:
    """Start a build of the conversations, and stop its stage for as long as the block takes."""
    write_prompts(project.folder / "prompts.jsonl", 20_000, answers=True)
    build = project.start("build", "--stage", "conversations", "tiny.yaml")
    deadline, stages = time.monotonic() + SECONDS, list[int]()
    while not stages:
        assert time.monotonic() < deadline
        assert build.poll() is None, build.communicate()
        stages = processes_of(project.store / "work")
    os.kill(stages[0], signal.SIGSTOP)
    try:
        yield build
    finally:
        os.kill(stages[0], signal.SIGCONT)
        finish([build])


@pytest.mark.parametrize("count", [2, MANY])
def test_of_builds_of_one_spec_at_once_one_works_and_the_others_wait(project: Project, count: int) -> None:
    lock = project.folder / "tiny.lock.json"
    with long_build(project):
        others = [project.start("build", "--stage", "conversations", "tiny.yaml") for _ in range(count - 1)]
        for other in others:
            assert other.stderr is not None
            assert other.stderr.readline() == "conversations: another process is building it, waiting for that\n"
    said = finish(others, lambda: json.loads(lock.read_text()))
    assert started(said) == {}
    assert len({words.rsplit("sha256:", 1)[1].split()[0] for words in said}) == 1
    assert len(list(project.store.glob("*-conversations-tiny"))) == 1
    assert len(list((project.store / "records").iterdir())) == 1
    assert sorted(path.name for path in project.folder.iterdir()) == ["prompts.jsonl", "tiny", "tiny.lock.json",
                                                                      "tiny.yaml"]  # fmt: skip
    assert lock_of(project) == {"conversations": Store(project.store).digests()[0]}
    whole(project)


def test_builds_of_different_specs_run_what_they_share_once(project: Project) -> None:
    other = another(project, "other")
    spec = other.folder / "tiny.yaml"
    spec.write_text(spec.read_text().replace("vocabulary: 128", "vocabulary: 64"))
    builds = [each.start("build", "--stage", "vocabulary", "tiny.yaml") for each in (project, other) * 3]
    assert started(finish(builds)) == {"verifier": 1, "conversations": 1, "tokens": 1, "vocabulary": 2}
    one, two = lock_of(project), lock_of(other)
    assert {stage for stage in one if one[stage] == two[stage]} == {"verifier", "conversations", "tokens"}
    assert {path.name for path in (project.store / "last").iterdir()} == {"tiny", "other"}
    whole(project)


def test_a_build_keeps_what_another_one_noted_in_the_lock_meanwhile(project: Project) -> None:
    with long_build(project):
        project.run("build", "--stage", "verifier", "tiny.yaml")
        assert lock_of(project).keys() == {"verifier"}
    assert lock_of(project).keys() == {"verifier", "conversations"}


def test_a_build_leaves_a_lock_that_was_changed_meanwhile_as_it_is(project: Project) -> None:
    spec, lock = project.folder / "tiny.yaml", project.folder / "tiny.lock.json"
    with long_build(project) as build:
        spec.write_text(SPEC.replace("4096", "8192"))
        project.run("lock", "tiny.yaml")
        before = lock.read_bytes()
        assert b"8192" in before
    assert lock.read_bytes() == before
    assert build.returncode == 0
    _, err = project.run("build", "--stage", "conversations", "tiny.yaml")
    assert "nothing to do" in err
    assert lock_of(project).keys() == {"conversations"}


def test_gc_takes_nothing_from_builds_that_run(project: Project, quick_path: Path) -> None:
    """No lock says what these builds need, as far as this `gc` knows: it runs in another project on the same store."""
    projects = [another(project, f"p{index}", rows=20 + index) for index in range(5)]
    expected = [replace(each, store=quick_path / "apart").build("conversations") for each in projects]
    elsewhere = Project(quick_path / "elsewhere", project.store)
    elsewhere.folder.mkdir()
    (elsewhere.folder / ".git").mkdir()
    project.store.mkdir()
    taken: list[int] = []

    def collect() -> None:
        keep = len(taken) % 3
        elsewhere.run("gc", "--dry-run", "--keep-last", "0")
        out, _ = elsewhere.run("gc", "--json", "--keep-last", str(keep), *(["--unfinished"] if keep == 0 else []))
        taken.append(len(json.loads(out)["artifacts"]))

    builds = [projects[index % 5].start("build", "--stage", "conversations", "tiny.yaml") for index in range(MANY)]
    said = finish(builds, collect)
    for index, words in enumerate(said):
        assert f"conversations sha256:{expected[index % 5]['conversations']}\n" in words
    assert sum(taken) > 0, "gc had something to take"
    for each, digests in zip(projects, expected, strict=True):
        assert lock_of(each) == each.build("conversations") == digests
        each.run("gc", "--keep-last", "0")
        assert digests["conversations"] in Store(each.store).digests(), "its own lock holds it"
    whole(project)


def test_gc_takes_nothing_from_what_is_built_again_to_be_compared(project: Project) -> None:
    project = replace(project, store=project.folder / ".specc/store")  # inside, where `gc` looks for locks
    digests = project.build()
    again = [project.start("verify", "--rebuild", digests["vocabulary"]) for _ in range(6)]
    said = finish(again, lambda: project.run("gc", "--keep-last", "0", "--unfinished"))
    assert all("1 artifact built again: every bit is the same" in words for words in said)
    assert project.build() == digests
    whole(project)


def test_builds_of_which_most_are_killed_leave_what_the_next_ones_go_on_from(project: Project) -> None:
    random = Random(20261124)  # noqa: S311 - it must repeat
    digests = make_project(project.folder.parent / "apart").build()
    for _ in range(3):
        builds = [project.start("build", "--stage", "vocabulary", "tiny.yaml") for _ in range(4)]
        time.sleep(random.uniform(0.4, 1.2))
        for build in builds[1:]:
            build.send_signal(random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
        finish(builds[:1])
        for build in builds[1:]:
            assert "Traceback" not in build.communicate()[1]
    assert project.build() == digests
    project.run("gc", "--unfinished")
    whole(project, left="/.")  # a file that was being written when its writer was killed, under no name of its own
