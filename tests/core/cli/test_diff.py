"""`specc diff`: meaning, not text; every kind of side; what is built anew is what a build builds."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projects import SPEC, Project, make_project

GIT = shutil.which("git") or "git"
Change = Callable[[str], str]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def other(project: Project, change: Change, name: str = "other.yaml") -> str:
    """Write a second spec beside the first."""
    (project.folder / name).write_text(change(SPEC))
    return name


def data(project: Project, before: str, after: str) -> dict[str, Any]:
    return json.loads(project.run("diff", "--json", before, after)[0])


def git(folder: Path, *arguments: str) -> None:
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([GIT, *names, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# a comment\n" + text,
        lambda text: "\n".join(reversed(text.split("\n", 1))).replace("\nversion: 1", "\nversion: 1\n"),
        lambda text: text.replace("train: {batch_tokens: 4096}", "train: {epochs: 3, batch_tokens: 4096}"),
    ],
    ids=["comment", "order", "a default written out"],
)
def test_what_is_no_change(project: Project, change: Change) -> None:
    name = other(project, change)
    assert project.run("diff", "tiny.yaml", name)[0] == f"tiny.yaml → {name}\nno difference in meaning\n"
    project.run("diff", "--detailed-exitcode", "tiny.yaml", name)


def test_a_value_and_what_it_rebuilds(project: Project) -> None:
    name = other(project, lambda text: text.replace("batch_tokens: 4096", "epochs: 5, batch_tokens: 4096"))
    found = data(project, "tiny.yaml", name)
    assert found["differences"] == [
        {"kind": "value", "path": "train.epochs", "before": 3, "after": 5, "where": "other.yaml:9",
         "stages": ["draft", "checkpoint"]},
    ]  # fmt: skip
    assert [(one["stage"], one["why"]) for one in found["rebuilt"]] == [("draft", "changed"), ("checkpoint", "changed")]
    assert all(one["estimate"]["seconds"] > 0 for one in found["rebuilt"])
    text = project.run("diff", "--detailed-exitcode", "tiny.yaml", name, expect=5)[0]
    assert "  train.epochs  3 → 5  other.yaml:9, draft, checkpoint\n" in text
    assert "1 value differs, 2 of 7 stages are built anew: about" in text


def test_what_is_in_no_key_builds_nothing(project: Project) -> None:
    name = other(project, lambda text: text.replace("4096}", "4096, save_every: 50}"))
    out = project.run("diff", "--detailed-exitcode", "tiny.yaml", name)[0]
    assert "  train.save_every  200 → 50  other.yaml:9, in no key: nothing is built anew\n" in out
    assert out.endswith("1 value differs, nothing is built anew\n")


def test_threads_reach_the_stages_of_the_numerics_class(project: Project) -> None:
    name = other(project, lambda text: text + "runtime: {threads: 2}\n")
    found = data(project, "tiny.yaml", name)
    assert found["differences"][0]["stages"] == ["hidden_states", "draft"]
    assert [one["stage"] for one in found["rebuilt"]] == ["hidden_states", "draft", "checkpoint"]


def test_a_stage_that_is_gone_and_one_that_comes(project: Project) -> None:
    name = other(project, lambda text: text.replace("vocabulary: 128", "vocabulary: full"))
    assert data(project, "tiny.yaml", name)["dropped"] == ["vocabulary"]
    assert {"stage": "vocabulary", "why": "new"}.items() <= data(project, name, "tiny.yaml")["rebuilt"][0].items()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("shard_rows: 8", "shard_rows: 4"),
        lambda text: text.replace("vocabulary: 128", "vocabulary: 64"),
        lambda text: text + "export: {dtype: float32}\n",
    ],
)
def test_it_says_what_a_plan_after_a_build_says(project: Project, change: Change) -> None:
    """The stages that `diff` calls rebuilt are those that `plan` would build once the first spec was built."""
    project.build()
    built = {"verifier", "conversations", "tokens", "vocabulary"}
    said = {one["stage"] for one in data(project, "tiny.yaml", other(project, change))["rebuilt"]} & built
    (project.folder / "tiny.yaml").write_text(change(SPEC))
    assert said == set(project.why())


def test_locks_and_artifacts_are_sides(project: Project) -> None:
    project.run("lock", "tiny.yaml")
    assert "no difference" in project.run("diff", "tiny.lock.json", "tiny.yaml")[0]
    digest = project.build()["vocabulary"]
    assert "no difference" in project.run("diff", digest, "tiny.yaml")[0]
    name = other(project, lambda text: text.replace("vocabulary: 128", "vocabulary: 64"))
    found = data(project, digest[:10], name)
    assert [(one["path"], one["before"], one["after"]) for one in found["differences"]] == [
        ("draft.vocabulary", 128, 64)
    ]
    assert [one["stage"] for one in found["rebuilt"]] == ["vocabulary"]
    (project.folder / "tiny.yaml").write_text(SPEC.replace("vocabulary: 128", "vocabulary: 64"))
    (one,) = data(project, digest, project.build()["vocabulary"])["differences"]
    assert one == {**found["differences"][0], "where": None, "stages": ["vocabulary"]}, "it knows its own stages alone"


def test_a_revision_is_what_it_was_with_its_files(project: Project) -> None:
    git(project.folder, "init", "-q")
    git(project.folder, "add", ".")
    git(project.folder, "commit", "-qm", "first")
    with (project.folder / "prompts.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    found = data(project, "HEAD:tiny.yaml", "tiny.yaml")
    assert [one["path"] for one in found["differences"]] == ["data.sources.0.sha256"]
    assert found["before"] == "HEAD:tiny.yaml"
    assert "no difference" in project.run("diff", "HEAD:tiny.yaml", "HEAD:tiny.yaml")[0]
    for wrong in ("HEAD:none.yaml", "nowhere:tiny.yaml", "--output=x:tiny.yaml", ":tiny.yaml"):
        assert "error: " in project.run("diff", "--", wrong, "tiny.yaml", expect=1)[1]


def test_a_revision_has_what_its_spec_goes_on_from(project: Project) -> None:
    """The base is in a folder of its own, with the data beside it; values are said to stand where they do."""
    folder = project.folder
    (folder / "mine").mkdir()
    (folder / "mine/spec.yaml").write_text("extends: ../tiny.yaml\nname: mine\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "tiny.yaml").write_text(SPEC.replace("4096", "2048"))
    found = data(project, "HEAD:mine/spec.yaml", "mine/spec.yaml")
    assert [(one["path"], one["where"]) for one in found["differences"]] == [("train.batch_tokens", "tiny.yaml:9")]
    found = data(project, "mine/spec.yaml", "HEAD:mine/spec.yaml")
    assert [one["where"] for one in found["differences"]] == ["HEAD:tiny.yaml:9"]


def test_markdown_is_safe_for_a_comment(project: Project) -> None:
    name = other(project, lambda text: text.replace("data:", 'data:\n  system_prompt: "a|b`c` <img src=x>\\n# no"'))
    out = project.run("diff", "--format", "markdown", "tiny.yaml", name)[0]
    assert out.startswith("**1 value differs, ")
    (row,) = (line for line in out.splitlines() if line.startswith("| `data.system_prompt`"))
    assert row.replace("\\|", "").count("|") == 5, "the value stays in its cell"
    assert "`a\\|b'c' <img src=x> # no`" in row, "and in its code"


def test_sides_that_are_none(project: Project) -> None:
    assert "there is no file `none.yaml`" in project.run("diff", "none.yaml", "tiny.yaml", expect=1)[1]
    assert "is not the id of an artifact" in project.run("diff", "tiny.yaml", "none", expect=1)[1]
    (project.folder / "bad.yaml").write_text("version: 1\n")
    assert "bad.yaml:1:1" in project.run("diff", "bad.yaml", "tiny.yaml", expect=1)[1]
