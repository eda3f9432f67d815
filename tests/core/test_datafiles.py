"""Names of data files: formats, patterns, folders."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specc.core.datafiles import Format, files_of, format_of, is_pattern, local_files, local_places, matches
from specc.core.plan.stages import LANGUAGE_MODEL
from specc.core.presets import PRESETS
from specc.core.references import HUB_ID


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jsonl", Format("jsonl")),
        ("b.NDJSON.gz", Format("jsonl", ".gz")),
        ("v1.0/rows.json.xz", Format("json", ".xz")),
        ("train-00000-of-00001.parquet", Format("parquet")),
        ("x.parquet.gz", None),
        ("x.arrow", Format("arrow")),
        ("x.gz", None),
        ("x.xlsx", None),
        (".jsonl", None),
        ("jsonl", None),
        ("", None),
    ],
)
def test_a_suffix_says_the_format(name: str, expected: Format | None) -> None:
    assert format_of(name) == expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.jsonl", "a.jsonl", True),
        ("*.jsonl", "b/a.jsonl", False),
        ("**/*.jsonl", "a.jsonl", True),
        ("**/*.jsonl", "b/c/a.jsonl", True),
        ("data/train-*", "data/train-00000-of-00001.parquet", True),
        ("data/train-*", "data/train-x/y", False),
        ("data/**", "data/x/y", True),
        ("a?[0-9].csv", "ab7.csv", True),
        ("a?[!0-9].csv", "ab7.csv", False),
        ("a.b", "axb", False),
        ("a[b", "a[b", True),
        ("a[]-]c", "a]c", True),
        ("**/train/**", "x/train/y/z", True),
        ("**/train/**", "train/y", True),
        ("**/train/**", "xtrain/y", False),
        ("**/*" * 12 + "b", "a/" * 120 + "a", False),  # and soon
        ("*" * 300, "a" * 250, True),
    ],
)
def test_patterns_of_a_data_set(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@given(st.text(st.characters(exclude_characters="*?[", exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_a_name_without_wildcards_fits_itself_alone(name: str) -> None:
    assert not is_pattern(name)
    assert matches(name, name)
    assert not matches(name, name + "x")


def test_folders_and_patterns_of_this_disk(tmp_path: Path) -> None:
    for name in (
        "data/b.jsonl",
        "data/a.csv",
        "data/deep/c.parquet",
        "data/.cache/d.jsonl",
        "data/notes.md",
        "other.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    inside = ["data/a.csv", "data/b.jsonl", "data/deep/c.parquet"]
    assert list(local_places("data", tmp_path)) == list(local_places("./data/", tmp_path)) == inside
    assert list(local_places("data/*.jsonl", tmp_path)) == ["data/b.jsonl"]
    assert list(local_places("**/*.[ct]*", tmp_path)) == ["data/a.csv", "other.txt"]
    assert list(local_places("../" + tmp_path.name + "/data", tmp_path)) == [
        f"../{tmp_path.name}/{one}" for one in inside
    ]
    assert local_places("data/notes.md", tmp_path) == {"data/notes.md": tmp_path / "data/notes.md"}  # as JSON lines
    assert local_places("empty", tmp_path) == local_places("nothing", tmp_path) == local_places("x*", tmp_path) == {}


def test_what_a_lock_says_of_files() -> None:
    assert files_of({"file": "a", "sha256": "1"}) == local_files({"file": "a", "sha256": "1"}) == {"a": "1"}
    assert list(files_of({"file": "d", "files": {"d/b": "2", "d/a": "1"}}).items()) == [("d/a", "1"), ("d/b", "2")]
    assert local_files({"dataset": "o/n", "files": {"b": "2"}}) == {}
    assert files_of({"url": "https://h/a", "sha256": "1"}) == {"https://h/a": "1"}


def test_presets_are_whole(root: Path) -> None:
    for preset in PRESETS.values():
        assert HUB_ID.fullmatch(preset.dataset)
        assert preset.licence == preset.licence.lower()
        assert preset.card == f"https://huggingface.co/datasets/{preset.dataset}"
        assert {"dataset", "split", "licence"} <= preset.values().keys()
        assert preset.columns or preset.dataset.endswith("/xlam-function-calling-60k"), "whose names say what they hold"
        assert preset.dataset in (root / "docs/how-to/data.md").read_text()


def test_the_language_model_is_the_extras(root: Path) -> None:
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["data"]
    assert LANGUAGE_MODEL.replace(" ", "==") in extra
