"""Paths stay inside the project, by their names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.core.language import Document
from specc.core.language.paths import check_paths


def found(spec: Path, name: str) -> list[str | None]:
    document = Document.parse(f"data:\n  sources: [{{file: {name}}}]\n", str(spec))
    return [error.id for error in check_paths(document, exist=False)]


@pytest.mark.parametrize("sign", [".git", "pyproject.toml"])
def test_a_path_does_not_climb_out_of_the_project(tmp_path: Path, sign: str) -> None:
    root = tmp_path / "project"
    (root / "specs/deep").mkdir(parents=True)
    (root / sign).touch()
    spec = root / "specs/deep/a.yaml"
    assert found(spec, "../../data/a.jsonl") == []
    assert found(spec, "../../../project/a.jsonl") == []
    assert found(spec, "../../../a.jsonl") == ["E0224"]
    assert found(spec, "x/../../../../a.jsonl") == ["E0224"]
    assert found(spec, "package:prompts/../../../../a.jsonl") == []  # no path, but a name in a package
    (tmp_path / "other/.git").mkdir(parents=True)
    (tmp_path / "other/inner").mkdir()
    (root / "data").symlink_to(tmp_path / "other/inner")
    assert found(spec, "../../data/a.jsonl") == []  # a link is of the project
    assert found(root / "data/a.yaml", "../../project/a.jsonl") == []


def test_a_nested_project_is_the_nearest_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "inner"):
        folder.mkdir(exist_ok=True)
        (folder / ".git").mkdir()
    assert found(tmp_path / "inner/a.yaml", "../a.jsonl") == ["E0224"]


def test_without_a_project_nothing_is_outside(tmp_path: Path) -> None:
    if any((folder / sign).exists() for folder in tmp_path.parents for sign in (".git", "pyproject.toml")):
        pytest.skip("the folder for temporary files is in a project")
    assert found(tmp_path / "a.yaml", "../../../../a.jsonl") == []


def test_a_spec_is_found_from_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path / "specs")
    assert found(Path("a.yaml"), "../a.jsonl") == []
    assert found(Path("a.yaml"), "../../a.jsonl") == ["E0224"]
    assert found(Path("../specs/a.yaml"), "../../a.jsonl") == ["E0224"]
