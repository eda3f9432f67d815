"""The lock file: canonical text, refusals, comparison, and its engine pins."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from specc.core import lock as locks
from specc.core.errors import SpeccError
from specc.core.lock import CLASSES, Lock, Locked, machine_class


def _lock(**values: Any) -> Lock:
    tree = {"train": {"optimizer": {"learning_rate": 1e-3}, "seed": 42}, **values}
    return Lock(
        locked=Locked(machine="cpu-amx", written={"train.seed": 42}, values=tree, stages={"draft": 1}, engines={}),
        results={"cpu-amx-t2-r1": {"draft": "ab" * 32}},
    )


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.json"
    assert locks.write(path, {"": _lock()})
    assert locks.read(path) == {"": _lock()}
    assert not locks.write(path, {"": _lock()}), "the same lock is not written twice"
    assert path.read_text().endswith("}\n")


def test_the_lock_stands_beside_its_spec() -> None:
    assert locks.lock_path(Path("specs/a.b.yaml")) == Path("specs/a.b.lock.json")


def test_what_moved_is_named_with_both_values() -> None:
    old, new = _lock().locked, _lock(train={"optimizer": {"learning_rate": 2e-3}, "seed": 42}).locked
    (moved,) = locks.compare(old, new)
    assert (moved.path, moved.lock, moved.spec) == ("train.optimizer.learning_rate", 1e-3, 2e-3)
    assert locks.compare(old, old) == []


def test_one_hash_in_a_list_of_files_is_one_difference() -> None:
    files = [{"file": "a.jsonl", "sha256": "0" * 64}, {"file": "b.jsonl", "sha256": "1" * 64}]
    old = _lock(data={"sources": files}).locked
    new = _lock(data={"sources": [files[0], {**files[1], "sha256": "2" * 64}]}).locked
    (moved,) = locks.compare(old, new)
    assert (moved.path, moved.lock, moved.spec) == ("data.sources.1.sha256", "1" * 64, "2" * 64)


def test_a_section_that_goes_is_its_values_and_no_null() -> None:
    old, new = _lock(evaluate={"max_tokens": 64}).locked, _lock(evaluate=None).locked
    assert [moved.path for moved in locks.compare(old, new)] == ["evaluate.max_tokens"]


def test_a_class_has_the_pins_of_a_lock_where_it_has_them() -> None:
    row = machine_class("cpu-amx", {"cpu-amx": {"torch": "2.0.0"}})
    assert row.facets(2, 1) == {"device": "cpu", "isa": "amx", "threads": 2, "ranks": 1, "torch": "2.0.0"}
    assert machine_class("cuda", {"cpu-amx": {"torch": "2.0.0"}}) == CLASSES["cuda"]


def test_conflict_markers_mean_that_it_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.lock.json"
    path.write_text("{\n<<<<<<< HEAD\n=======\n>>>>>>> branch\n}\n")
    assert locks.read(path) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is not JSON"),
        ("[]", "version `None`"),
        ('{"lock": 99}', "version `99`"),
        ('{"lock": 1, "locked": {}, "results": {}}', "lacks or garbles 'class'"),
        ('{"lock": 1, "locked": {"class": "x", "written": 3}, "results": {}}', "lacks or garbles a table"),
    ],
)
def test_a_damaged_lock_is_refused_in_words(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "x.lock.json"
    path.write_text(text)
    with pytest.raises(SpeccError) as caught:
        locks.read(path)
    assert why in caught.value.message
    assert "version control" in (caught.value.hint or "")


def test_the_pins_are_those_of_the_extras(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for row in CLASSES.values():
        extra = dict(item.split("==") for item in project["optional-dependencies"][row.device])
        assert extra == row.engines, row.name


def test_the_lock_is_sorted_json(tmp_path: Path) -> None:
    text = locks.dump({"": _lock()})
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
