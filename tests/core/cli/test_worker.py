"""`specc build --worker`: shards for a build that runs elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects import Project, leftovers, make_project
from specc.core.store import Store


@pytest.fixture
def project(quick_path: Path) -> Project:
    found = make_project(quick_path / "project")
    found.run("lock", "tiny.yaml")
    return found


def test_a_worker_makes_the_shards_and_the_build_takes_them(project: Project, quick_path: Path) -> None:
    project.build("conversations")
    project.build("verifier")
    project.run("build", "--frozen", "--stage", "tokens", "--worker", "tiny.yaml")
    assert len(list(project.store.glob("units/tokens/??/*.safetensors"))) == 5
    assert not list(project.store.glob("*-tokens-*/"))
    assert leftovers(project.store) == []
    before = {path: path.stat().st_ino for path in project.store.glob("units/tokens/??/*.safetensors")}
    digests = project.build("tokens")
    assert {path: path.stat().st_ino for path in before} == before, "none was made again"
    assert digests["tokens"] == make_project(quick_path / "other").build("tokens")["tokens"]
    assert Store(project.store).verify(digests["tokens"]) == []
    project.run("build", "--frozen", "--stage", "tokens", "--worker", "tiny.yaml")  # there is nothing to help with


def test_a_worker_that_cannot_help_says_why(project: Project) -> None:
    _, words = project.run("build", "--frozen", "--worker", "tiny.yaml", expect=2)
    assert "a worker helps with one stage" in words
    _, words = project.run("build", "--frozen", "--stage", "tokens", "--worker", "tiny.yaml", expect=1)
    assert "what `tokens` reads is not in the store yet: `conversations`, `verifier`" in words
    _, words = project.run("build", "--frozen", "--stage", "verifier", "--worker", "tiny.yaml", expect=1)
    assert "`verifier` is not made of shards that several workers make" in words
