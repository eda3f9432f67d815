"""`--profile`: another machine's threads, ranks and store for one spec, in no lock and never what is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from projects import BUILT, Project, make_project

PROFILE = "runtime:\n  threads: 8\n  train: {ranks: 2}\n"


@pytest.fixture
def project(quick_path: Path) -> Project:
    made = make_project(quick_path / "project")
    (made.folder / "large.yaml").write_text(PROFILE)
    return made


def test_it_changes_the_class_alone_and_the_plan_says_so(project: Project) -> None:
    own = json.loads(project.run("plan", "--json", "tiny.yaml")[0])
    found = json.loads(project.run("plan", "--json", "--profile", "large.yaml", "tiny.yaml")[0])
    assert found["class"] == own["class"].replace("-t4-r1", "-t8-r2") != own["class"]
    recipes = [{item["stage"]: item["recipe"] for item in one["stages"]} for one in (own, found)]
    assert [name for name in recipes[0] if recipes[0][name] == recipes[1][name]] == list(BUILT)
    _, words = project.run("plan", "--profile", "large.yaml", "tiny.yaml")
    assert f"the profile large.yaml builds in the numerics class `{found['class']}`" in words
    (project.folder / "same.yaml").write_text("runtime: {threads: 4}\n")
    assert "numerics class" not in project.run("plan", "--profile", "same.yaml", "tiny.yaml")[1]


def test_it_may_spread_the_verifier_over_as_many_processes_as_its_heads_divide_by(project: Project) -> None:
    profile = project.folder / "wide.yaml"
    profile.write_text("runtime: {datagen: {tensor_parallel: 2}}\n")
    assert json.loads(project.run("plan", "--json", "--profile", "wide.yaml", "tiny.yaml")[0])["class"].endswith("-v2")
    profile.write_text("runtime: {datagen: {tensor_parallel: 3}}\n")
    _, said = project.run("plan", "--profile", "wide.yaml", "tiny.yaml", expect=1)
    assert "error: wide.yaml:1:38: `runtime.datagen.tensor_parallel` is 3, and the verifier's 2 attention heads" in said


def test_it_is_in_no_lock_and_what_it_built_is_kept_there(project: Project) -> None:
    lock = project.folder / "tiny.lock.json"
    project.run("lock", "tiny.yaml")
    before = json.loads(lock.read_text())
    project.build("vocabulary", "--profile", "large.yaml")
    found = json.loads(lock.read_text())
    assert found["locked"] == before["locked"]
    (name,) = found["results"]
    assert name.endswith("-t8-r2")
    project.run("lock", "--check", "tiny.yaml")
    project.run("lock", "tiny.yaml")
    assert json.loads(lock.read_text()) == found, "a lock without the profile keeps what was found with it"
    project.build()
    assert {part.rpartition("-t")[2] for part in json.loads(lock.read_text())["results"]} == {"4-r1", "8-r2"}
    project.run("build", "--frozen", "--profile", "large.yaml", "--stage", "vocabulary", "tiny.yaml")


def test_its_store_is_relative_to_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECC_STORE", raising=False)
    (project.folder / "machines").mkdir()
    (project.folder / "machines/disk.yaml").write_text("runtime: {store: ../disk}\n")
    done = project.specc("build", "--profile", "machines/disk.yaml", "--stage", "tokens", "tiny.yaml",
                         environment={"SPECC_STORE": ""})  # fmt: skip
    assert "tokens" in done.stderr
    assert list((project.folder / "disk").glob("*-tokens-tiny"))


def test_a_value_is_said_to_stand_in_it(project: Project) -> None:
    page, _ = project.run("explain", "--profile", "large.yaml", "tiny.yaml", "runtime.threads")
    assert page.splitlines()[:2] == ["runtime.threads: 8", "  from     large.yaml:2"]


@pytest.mark.parametrize(
    ("text", "id", "place"),
    [
        ("runtime: {thread: 8}\n", "E0101", "bad.yaml:1:11"),
        ("runtime: {threads: many}\n", "E0102", "bad.yaml:1:20"),
        ("threads: 8\n", "E0101", "bad.yaml:1:1"),
        ("runtime: {threads: 8}\ntrain: {epochs: 9}\n", "E0101", "bad.yaml:2:1"),
        ("runtime: {train: {ranks: [{ranks: 2}, {ranks: 1}]}}\n", "E0222", "bad.yaml:1:26"),
        ("runtime: {datagen: {workers: 2, devices: [0]}}\n", "E0247", "bad.yaml:1:42"),
    ],
)  # fmt: skip
def test_it_holds_a_runtime_and_nothing_else(project: Project, text: str, id: str, place: str) -> None:  # noqa: A002
    (project.folder / "bad.yaml").write_text(text)
    found = json.loads(project.run("plan", "--json", "--profile", "bad.yaml", "tiny.yaml", expect=1)[0])["errors"]
    where = [f"{one['where']['file']}:{one['where']['line']}:{one['where']['column']}" for one in found]
    assert (id, place) in zip([one["id"] for one in found], where, strict=True)
