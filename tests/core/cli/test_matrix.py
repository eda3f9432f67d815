"""A spec with a matrix: one plan and one lock, what its builds share built once, and every command with `--only`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from projects import BUILT, SPEC, Project, make_project

MATRIX = """\
matrix:
  draft.vocabulary: [96, 128]
  train.seed: [1, 2]
"""
SMALL, LARGE = "draft.vocabulary=96", "draft.vocabulary=128"
NAMES = [f"{size},train.seed={seed}" for size in (SMALL, LARGE) for seed in (1, 2)]


@pytest.fixture
def project(quick_path: Path) -> Project:
    made = make_project(quick_path / "project")
    (made.folder / "tiny.yaml").write_text(SPEC.replace(", vocabulary: 128", "") + MATRIX)
    return made


def plan(project: Project, *options: str) -> dict[str, Any]:
    return json.loads(project.run("plan", "--json", *options, "tiny.yaml")[0])


def test_what_builds_share_is_in_the_plan_once(project: Project) -> None:
    found = plan(project)
    counts = {
        name: [item["stage"] for item in found["stages"]].count(name) for name in (*BUILT, "hidden_states", "draft")
    }
    assert counts == {"verifier": 1, "conversations": 1, "tokens": 1, "vocabulary": 2, "hidden_states": 1, "draft": 4}
    assert sorted(found["builds"]) == sorted(NAMES)
    assert {recipe for some in found["builds"].values() for recipe in some} == {
        one["recipe"] for one in found["stages"]
    }
    text, _ = project.run("plan", "tiny.yaml")
    assert [line.split()[:3] for line in text.splitlines() if line.startswith(("tokens", "draft"))] == [
        ["tokens", "1", "build"], ["draft", "4", "build"]]  # fmt: skip
    assert text.splitlines()[-1].startswith("plan: 4 builds, 0 hits, 14 to build, about ")
    assert "key" in project.run("plan", "--only", NAMES[0], "tiny.yaml")[0].splitlines()[0], (
        "one build has the usual table"
    )


def test_what_builds_share_is_built_once(project: Project) -> None:
    out, words = project.run("build", "--json", "--stage", "vocabulary", "tiny.yaml")
    found = json.loads(out)["builds"]
    assert sorted(found) == sorted(NAMES)
    digests = {name: {one["artifacts"][name] for one in found.values()} for name in BUILT}
    assert {name: len(some) for name, some in digests.items()} == {
        "verifier": 1, "conversations": 1, "tokens": 1, "vocabulary": 2}  # fmt: skip
    assert words.count("tokens: started") == 1
    assert words.count("vocabulary: started") == 2
    assert [line for line in words.splitlines() if line.startswith("[")] == [
        f"[{number}/4] {name}" for number, name in enumerate(NAMES, start=1)]  # fmt: skip
    _, words = project.run("build", "--stage", "vocabulary", "tiny.yaml")
    assert "nothing to do: 4 builds" in words
    assert "started" not in words


def test_one_lock_has_what_each_build_has_of_its_own(project: Project) -> None:
    project.run("build", "--stage", "vocabulary", "tiny.yaml")
    raw = json.loads((project.folder / "tiny.lock.json").read_text())
    assert sorted(raw["builds"]) == sorted(NAMES)
    assert "vocabulary" not in raw["locked"]["values"]["draft"]
    assert raw["builds"][NAMES[3]]["locked"]["values"] == {"draft": {"vocabulary": 128}, "train": {"seed": 2}}
    (shared,) = raw["results"].values()
    (own,) = raw["builds"][NAMES[0]]["results"].values()
    assert (sorted(shared), sorted(own)) == (["conversations", "tokens", "verifier"], ["vocabulary"])
    project.run("lock", "--check", "tiny.yaml")
    project.run("build", "--locked", "--stage", "vocabulary", "tiny.yaml")
    project.run("build", "--frozen", "--stage", "vocabulary", "tiny.yaml")


def test_a_lock_says_which_builds_it_lacks_and_keeps_the_results_of_the_others(project: Project) -> None:
    spec, lock = project.folder / "tiny.yaml", project.folder / "tiny.lock.json"
    project.run("build", "--stage", "vocabulary", "tiny.yaml")
    before = json.loads(lock.read_text())
    spec.write_text(spec.read_text().replace("[1, 2]", "[1, 3]"))
    _, words = project.run("lock", "--check", "tiny.yaml", expect=1)
    assert f"builds.{LARGE},train.seed=3: nothing in the lock, a build now" in words
    assert f"builds.{LARGE},train.seed=2: a build in the lock, nothing now" in words
    project.run("lock", "tiny.yaml")
    after = json.loads(lock.read_text())
    assert after["results"] == before["results"]
    same, new = f"{SMALL},train.seed=1", f"{SMALL},train.seed=3"
    assert after["builds"][same]["results"] == after["builds"][new]["results"] == before["builds"][same]["results"]


def test_a_matrix_that_is_added_keeps_what_was_built_without_it(project: Project) -> None:
    spec = project.folder / "tiny.yaml"
    whole = spec.read_text()
    spec.write_text(SPEC)
    project.build()
    spec.write_text(whole)
    found = plan(project, "--only", LARGE)["stages"]
    assert {item["stage"] for item in found if item["action"] == "hit"} == set(BUILT)
    assert {item["stage"] for item in plan(project)["stages"] if item["action"] == "hit"} == set(BUILT)


def test_what_moves_in_every_build_is_said_once(project: Project) -> None:
    spec = project.folder / "tiny.yaml"
    project.run("lock", "tiny.yaml")
    spec.write_text(spec.read_text().replace("shard_rows: 8", "shard_rows: 16"))
    _, words = project.run("lock", "--check", "tiny.yaml", expect=1)
    assert words.count("data.shard_rows: 8 in the lock, 16 in the spec (tiny.yaml:8)") == 1


def test_conflict_markers_are_settled_by_locking_anew(project: Project) -> None:
    lock = project.folder / "tiny.lock.json"
    project.run("lock", "tiny.yaml")
    text = lock.read_text()
    lock.write_text(f"<<<<<<< ours\n{text}=======\n{text}>>>>>>> theirs\n")
    project.run("lock", "tiny.yaml")
    assert lock.read_text() == text


@pytest.mark.parametrize(
    "command",
    [
        ("explain", "tiny.yaml", "draft"), ("explain", "tiny.yaml", "train.seed"), ("logs", "tiny.yaml", "vocabulary"),
        ("verify", "tiny.yaml"), ("serve", "--dry-run", "tiny.yaml"),
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_command_about_one_build_asks_which(project: Project, command: tuple[str, ...]) -> None:
    project.run("lock", "tiny.yaml")
    _, words = project.run(*command, expect=2)
    assert "the spec's matrix has 4 builds, and one is meant" in words
    assert f"such as `--only {SMALL}`" in words


def test_a_command_takes_the_build_that_is_chosen(project: Project) -> None:
    project.run("build", "--stage", "vocabulary", "tiny.yaml")
    chosen = ("--only", "vocabulary=96", "--only", "seed=2", "tiny.yaml")
    page, _ = project.run("explain", *chosen, "train.seed")
    assert page.splitlines()[:2] == ["train.seed: 2", "  from     tiny.yaml:12"]
    assert project.run("logs", *chosen, "vocabulary")[0].startswith("--- ")
    assert project.run("serve", "--dry-run", *chosen, expect=1)[1].startswith("error: ")
    _, words = project.run("plan", "--only", "vocabulary=97", "tiny.yaml", expect=2)
    assert "no build has `vocabulary=97`" in words


def test_one_build_can_be_built_alone(project: Project) -> None:
    out, words = project.run("build", "--json", "--stage", "vocabulary", "--only", NAMES[2], "tiny.yaml")
    assert list(json.loads(out)["builds"]) == [NAMES[2]]
    assert f"[1/1] {NAMES[2]}" in words
    results = {name: one.get("results") for name, one in
               json.loads((project.folder / "tiny.lock.json").read_text())["builds"].items()}  # fmt: skip
    assert [name for name, found in results.items() if found] == [NAMES[2]]


def test_force_builds_again_what_each_build_has_and_what_they_share_once(project: Project) -> None:
    project.run("build", "--stage", "vocabulary", "tiny.yaml")
    _, words = project.run("build", "--force", "--stage", "vocabulary", "tiny.yaml")
    assert words.count("vocabulary: started") == 2
    assert "tokens: started" not in words


def test_a_stage_is_built_for_the_builds_that_have_it(project: Project) -> None:
    spec = project.folder / "tiny.yaml"
    spec.write_text(spec.read_text().replace("[96, 128]", "[96, full]"))
    out, _ = project.run("build", "--json", "--stage", "vocabulary", "tiny.yaml")
    assert sorted(json.loads(out)["builds"]) == NAMES[:2]
    none = ("build", "--stage", "vocabulary", "--only", "vocabulary=full", "tiny.yaml")
    assert "this spec has no stage `vocabulary`" in project.run(*none, expect=1)[1]


def test_a_failing_build_stops_the_others_unless_told_to_go_on(project: Project) -> None:
    (project.folder / "tiny/tokenizer.json").write_text("{}")
    _, words = project.run("build", "--stage", "vocabulary", "tiny.yaml", expect=3)
    assert words.count("error:") == 1
    _, words = project.run("build", "--keep-going", "--stage", "vocabulary", "tiny.yaml", expect=3)
    assert [line.split("] ")[1] for line in words.splitlines() if line.startswith("[")] == NAMES


def test_status_and_show_put_builds_side_by_side(project: Project) -> None:
    project.run("build", "--stage", "vocabulary", "tiny.yaml")
    table, _ = project.run("status", "tiny.yaml")
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:4] == ["vocabulary", "seed", "state", "acceptance"]
    assert [line[:3] for line in lines[1:]] == [
        [size, seed, "missing"] for size in ("96", "128") for seed in ("1", "2")
    ]
    assert project.run("show", "tiny.yaml")[0] == table
    data = json.loads(project.run("status", "--json", "tiny.yaml")[0])
    assert [one["build"] for one in data["builds"]] == NAMES
    one, _ = project.run("status", "--only", NAMES[0], "tiny.yaml")
    assert one.splitlines()[0].startswith("stage")


def test_gc_keeps_what_a_build_of_a_matrix_needs(project: Project) -> None:
    project.run("build", "--stage", "vocabulary", "tiny.yaml")
    for folder in ("refs", "last"):
        path = project.store / folder
        if path.is_dir():
            path.rename(project.store / f"{folder}-aside")
    before = sorted(path.name for path in project.store.glob("*-*-*"))
    project.run("gc", "--keep-last", "0")
    assert sorted(path.name for path in project.store.glob("*-*-*")) == before
    (project.folder / "tiny.lock.json").unlink()
    project.run("gc", "--keep-last", "0")
    assert not list(project.store.glob("*-vocabulary-*"))


def test_diff_counts_what_builds_share_once(project: Project) -> None:
    spec, other = project.folder / "tiny.yaml", project.folder / "other.yaml"
    other.write_text(spec.read_text().replace("batch_tokens: 4096", "batch_tokens: 2048"))
    text, _ = project.run("diff", "tiny.yaml", "other.yaml")
    assert text.count("train.batch_tokens") == 1
    assert "draft × 4" in text
    assert "1 value differs, 8 of 14 stages are built anew" in text
    other.write_text(spec.read_text().replace("[1, 2]", "[1, 2, 3]"))
    found = json.loads(project.run("diff", "--json", "tiny.yaml", "other.yaml")[0])
    assert found["added"] == [f"{size},train.seed=3" for size in (SMALL, LARGE)]
    assert {one["stage"]: one["count"] for one in found["rebuilt"]} == {"draft": 2, "checkpoint": 2}
    markdown, _ = project.run("diff", "--format", "markdown", "tiny.yaml", "other.yaml")
    assert f"- new in the matrix: `{SMALL},train.seed=3`" in markdown
    one, _ = project.run("diff", "--only", NAMES[0], "tiny.yaml", "tiny.yaml")
    assert "no difference in meaning" in one


def test_a_matrix_is_compared_with_the_spec_that_it_came_from(project: Project) -> None:
    (project.folder / "plain.yaml").write_text(SPEC)
    found = json.loads(project.run("diff", "--json", "plain.yaml", "tiny.yaml")[0])
    assert {one["path"] for one in found["differences"]} == {"draft.vocabulary", "train.seed"}
    counts = {
        name: sum(one["count"] for one in found["rebuilt"] if one["stage"] == name) for name in ("vocabulary", "draft")
    }
    assert counts == {"vocabulary": 1, "draft": 4}


def test_env_of_a_matrix_is_that_of_its_builds(project: Project) -> None:
    project.run("lock", "tiny.yaml")
    assert "torch==" in project.run("env", "tiny.yaml")[0]
