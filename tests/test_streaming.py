"""Hidden states that are computed while the draft trains, and workers that make shards together: the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from projects import Project, leftovers, processes_of
from small import write_prompts
from specc.core.store import Store
from waiting import wait_until

pytestmark = pytest.mark.engine

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3, vocabulary: 128, hidden_state_layers: [1, 3, 4]}
data:
  sources: [{file: prompts.jsonl}]
  responses: {from: data}
  validation: 0.2
  shard_rows: 8
  shuffle_window: 2
  sequence_length: 256
  hidden_states: HOW
train:
  epochs: 2
  batch_tokens: 256
  save_every: 2
  optimizer: {name: adamw, learning_rate: 1e-3}
runtime:
  threads: 1
  datagen: {workers: WORKERS}
  train: {ranks: RANKS}
"""
SHARDS, WINDOW, AHEAD = 7, 2, 1


def make(
    folder: Path, verifier: Path, how: str, *, workers: int = 1, ranks: int = 1, answers: str = "{from: data}"
) -> Project:
    """Write a project with seven shards, of which a window has two."""
    folder.mkdir(parents=True)
    shutil.copytree(verifier, folder / "tiny")
    write_prompts(folder / "prompts.jsonl", 8 * SHARDS, answers=True)
    text = SPEC.replace("HOW", how).replace("WORKERS", str(workers)).replace("RANKS", str(ranks))
    (folder / "tiny.yaml").write_text(text.replace("{from: data}", answers))
    return Project(folder, folder / ".specc/store")


def built(project: Project, stage: str = "checkpoint") -> dict[str, str]:
    done = project.specc("build", "--json", "--stage", stage, "tiny.yaml")
    return json.loads(done.stdout)["artifacts"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, verifier_folder: Path) -> tuple[Project, dict[str, str]]:
    """A project that was built from disk, by two workers."""
    project = make(tmp_path_factory.mktemp("disk") / "project", verifier_folder, "disk", workers=2)
    return project, built(project)


def streamed(project: Project) -> Path | None:
    """Return the folder of a running training's stream."""
    return next(project.store.glob("work/draft-*/stream"), None)


def alive(project: Project) -> set[str]:
    """Return the shards that are there or are being made."""
    work = project.store / "work"
    return {path.name if path.parent.name == "stream" else str(path)
            for pattern in ("draft-*/stream/*.safetensors", "draft-*/producer-*/output/whole.safetensors")
            for path in work.glob(pattern)}  # fmt: skip


@contextmanager
def watched(project: Project) -> Iterator[tuple[list[int], set[tuple[str, int]]]]:
    """Watch a build: how many shards were alive at each look, and every file of a shard that there was."""
    over, counts, seen = threading.Event(), list[int](), set[tuple[str, int]]()

    def look() -> None:
        while not over.wait(0.005):
            counts.append(len(alive(project)))
            if (folder := streamed(project)) is not None:
                for path in folder.glob("*.safetensors"):
                    try:
                        seen.add((path.name, path.stat().st_ino))
                    except FileNotFoundError:
                        continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield counts, seen
    finally:
        over.set()
        thread.join()


def test_a_stream_gives_the_same_draft_and_checkpoint_and_holds_no_more_than_it_may(
    on_disk: tuple[Project, dict[str, str]], tmp_path: Path, verifier_folder: Path
) -> None:
    project = make(tmp_path / "project", verifier_folder, f"{{from: stream, ahead: {AHEAD}}}")
    with watched(project) as (counts, seen):
        found = built(project)
    assert found == {name: digest for name, digest in on_disk[1].items() if name != "hidden_states"}
    assert max(counts) <= WINDOW + AHEAD
    names = [name for name, _ in seen]
    assert len(set(names)) == SHARDS
    assert len(names) > SHARDS, "shards were dropped, and made again in the second epoch"
    assert leftovers(project.store) == []
    assert list((project.store / "work").iterdir()) == []
    assert not list(project.store.glob("*-hidden_states-*"))
    plan = json.loads(project.specc("plan", "--json", "tiny.yaml").stdout)["stages"]
    assert {item["stage"]: item["action"] for item in plan if item["stage"] in ("hidden_states", "draft")} == {
        "hidden_states": "stream", "draft": "hit"}  # fmt: skip
    lock = json.loads((project.folder / "tiny.lock.json").read_text())
    assert all("hidden_states" not in results for results in lock["results"].values())
    refused = project.specc("build", "tiny.yaml", "--stage", "hidden_states", expect=1).stderr
    assert "`hidden_states` is computed while `draft` trains" in refused
    draft = found["draft"].removeprefix("sha256:")[:12]
    assert "  and of hidden_states, streamed (key " in project.specc("show", draft).stdout
    refused = project.specc("verify", draft, "--rebuild", expect=1).stderr
    assert "there is no artifact of it to build from" in refused
    assert project.specc("logs", "tiny.yaml", "hidden_states", "--path").stdout.strip().endswith("/producer-1.log")
    project.specc("gc", "--keep-last", "0")
    assert "nothing to do" in project.specc("build", "tiny.yaml").stderr


def running(project: Project, name: str) -> list[int]:
    """Return the processes of a build that have `name` in their command line."""
    found: list[int] = []
    for pid in processes_of(project.folder):
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if name in text:
            found.append(pid)
    return found


def test_either_side_may_die_and_the_bytes_are_the_same(
    on_disk: tuple[Project, dict[str, str]], tmp_path: Path, verifier_folder: Path
) -> None:
    project = make(tmp_path / "project", verifier_folder, f"{{from: stream, ahead: {AHEAD}}}")
    own = "runtime: {datagen: {devices: [0]}, train: {devices: [1]}}\n"
    (project.folder / "machine.yaml").write_text(own)
    build = project.start("build", "--stage", "draft", "--profile", "machine.yaml", "tiny.yaml")
    wait_until(lambda: any((streamed(project) or tmp_path).glob("0*.safetensors")), 120)
    cores = sorted(os.sched_getaffinity(0))[:2]
    for name, core in zip(("producer-1/JOB.json", "specc.train"), cores, strict=True):
        assert {core} == set.union(*(os.sched_getaffinity(pid) for pid in running(project, name)))
    for pid in running(project, "producer-1/JOB.json"):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any(project.store.glob("work/draft-*/checkpoints/0/step-*")), 120)
    build.kill()
    _, said = build.communicate()
    assert "`producer-1` was killed by SIGKILL, and is started again" in said
    wait_until(lambda: processes_of(project.folder) == [])
    again = project.specc("build", "--json", "tiny.yaml", "--stage", "draft")
    assert "training goes on after step " in again.stderr
    assert json.loads(again.stdout)["artifacts"]["draft"] == on_disk[1]["draft"]


def test_two_workers_both_make_shards_and_one_makes_the_same(
    on_disk: tuple[Project, dict[str, str]], tmp_path: Path
) -> None:
    project, digests = on_disk
    store = Store(project.store)
    manifest = store.manifest(digests["hidden_states"].removeprefix("sha256:"))
    record = store.record(manifest.key)
    assert record["workers"] == 2
    assert 0 < record["own_units"] < SHARDS
    # Built again in an empty store, from the same inputs, by one process.
    done = project.specc("verify", "--rebuild", manifest.digest[:12])
    assert "the same" in done.stdout + done.stderr


def test_two_workers_answer_as_one_does(tmp_path: Path, verifier_folder: Path) -> None:
    some = "{from: verifier, max_tokens: 64, temperature: 0.8}"
    one, two = (make(tmp_path / str(count), verifier_folder, "disk", workers=count, answers=some) for count in (1, 2))
    digest = built(two, "responses")["responses"]
    store = Store(two.store)
    record = store.record(store.manifest(digest.removeprefix("sha256:")).key)
    assert record["workers"] == 2
    assert 0 < record["own_units"] < SHARDS
    assert built(one, "responses")["responses"] == digest


@pytest.mark.full
@pytest.mark.parametrize("how", ["{from: stream, keep: true}", "{from: stream, ahead: 1}"])
def test_two_ranks_read_one_stream_of_two_producers(how: str, tmp_path: Path, verifier_folder: Path) -> None:
    plain, stream = (make(tmp_path / name, verifier_folder, what, workers=2, ranks=2)
                     for name, what in (("disk", "disk"), ("stream", how)))  # fmt: skip
    expected = built(plain, "draft")["draft"]
    with watched(stream) as (counts, seen):
        assert built(stream, "draft")["draft"] == expected
    keeps = "keep" in how
    assert max(counts) <= (SHARDS if keeps else WINDOW + AHEAD)
    assert (len(seen) == SHARDS) == keeps


@pytest.mark.full
def test_a_streamed_spec_is_built_again_and_compared(tmp_path: Path, verifier_folder: Path) -> None:
    project = make(tmp_path / "project", verifier_folder, "{from: stream, keep: true}")
    built(project)
    found = json.loads(project.specc("verify", "--json", "--rebuild", "tiny.yaml").stdout)
    assert {item["stage"]: item["state"] for item in found["artifacts"]} == dict.fromkeys(
        ("verifier", "conversations", "tokens", "vocabulary", "draft", "checkpoint"), "same"
    )
