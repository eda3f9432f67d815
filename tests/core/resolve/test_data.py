"""What a lock pins of data: files of this disk, data sets of a hub, addresses, presets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from hub import Hub
from specc.core.errors import Position, SpeccError
from specc.core.files import sha256_file
from specc.core.language import Document
from specc.core.resolve.data import pin_data, places_of, unpinned_data

CARD = "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/train-*}\n  - {split: test," \
    " path: main/test-*}\n- config_name: other\n  data_files: other/*.jsonl\n---\n"  # fmt: skip
DOCUMENT = Document.parse("data:\n  sources:\n    - {file: a, dataset: b, url: c, preset: d}\n", "s.yaml")


def tree(*items: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"sources": [{"rows": None, **item} for item in items], "validation": {"share": 0, "sources": []}}}


def pinned(folder: Path, *items: dict[str, Any], known: list[Any] | None = None) -> list[dict[str, Any]]:
    whole = tree(*items)
    pin_data(whole, folder, sha256_file, [] if known is None else known, DOCUMENT)
    return whole["data"]["sources"]


def refused(folder: Path, item: dict[str, Any]) -> SpeccError:
    with pytest.raises(SpeccError) as raised:
        pinned(folder, item)
    assert isinstance(raised.value.where, Position)
    assert raised.value.hint
    return raised.value


def test_one_file_has_its_hash_and_several_have_each_their_own(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("d/b.jsonl", "d/a.jsonl"):
        (tmp_path / name).write_text(name)
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("d/a.jsonl", "d/b.jsonl")}
    one, several = pinned(tmp_path, {"file": "d/a.jsonl"}, {"file": "d"})
    assert one == {
        "file": "d/a.jsonl",
        "rows": None,
        "sha256": hashes["d/a.jsonl"],
    }  # as it was before there were others
    assert several == {"file": "d", "rows": None, "files": hashes}
    (tmp_path / "d" / "c.jsonl").write_text("new")
    assert list(pinned(tmp_path, {"file": "d"}, known=[several])[0]["files"]) == [*hashes, "d/c.jsonl"]
    assert pinned(tmp_path / "elsewhere", {"file": "d"}, known=[several])[0]["files"] == hashes  # the lock has it
    (tmp_path / "e").mkdir()
    assert refused(tmp_path, {"file": "nothing.jsonl"}).message == "there is no file `nothing.jsonl`"
    assert refused(tmp_path, {"file": "*.csv"}).message == "there is no file that fits `*.csv`"
    assert refused(tmp_path, {"file": "e"}).message == "the folder `e` has no file of a format that is read"


def test_the_rows_that_a_card_states_of_a_split_are_kept_for_estimates(hub: Hub, tmp_path: Path) -> None:
    info = "dataset_info:\n- config_name: main\n  splits:\n  - {name: train, num_examples: 7473}\n  - {name: test," \
        " num_examples: many}\n- config_name: other\n  splits: [7]\n"  # fmt: skip
    files = {"README.md": CARD.replace("---\nconfigs", f"---\n{info}configs").encode(), "main/train-0.jsonl": b"1",
             "main/test-0.jsonl": b"2", "other/x.jsonl": b"3"}  # fmt: skip
    hub.push("org/name", files)
    main = {"dataset": "org/name", "config": "main"}
    found = pinned(tmp_path, main, {**main, "split": "test"}, {**main, "config": "other"},
                   {"dataset": "org/name", "path": "other/x.jsonl"})  # fmt: skip
    assert [item.get("examples") for item in found] == [7473, None, None, None]
    assert pinned(tmp_path, main, known=found)[0]["examples"] == 7473, "the lock's, and no hub is asked"


def test_each_image_of_a_folder_has_its_hash(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    for name in ("p/b.png", "p/a/c.JPG", "p/.hidden/d.png", "p/notes.txt", "p/e.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    asked = {"file": "rows.jsonl", "images": "./p/"}
    whole = tree(asked)
    found = pin_data(whole, tmp_path, sha256_file, [], DOCUMENT)
    (item,) = whole["data"]["sources"]
    assert item["image_files"] == {name: sha256_file(tmp_path / name) for name in ("p/a/c.JPG", "p/b.png")}
    assert found == {name: tmp_path / name for name in ("rows.jsonl", *item["image_files"])}
    assert places_of(whole, tmp_path) == found
    # What is not here is the lock's, and an image that came later is in no lock.
    other = tmp_path / "other"
    other.mkdir()
    assert pinned(other, asked, known=[item])[0]["image_files"] == item["image_files"]
    (tmp_path / "p/f.webp").write_text("new")
    assert list(pinned(tmp_path, asked, known=[item])[0]["image_files"]) == ["p/a/c.JPG", "p/b.png", "p/f.webp"]
    (tmp_path / "none").mkdir()
    assert refused(tmp_path, {**asked, "images": "none"}).message == "the folder `none` has no image"


def test_a_split_is_pinned_by_commit_and_hashes_and_asked_for_once(hub: Hub, tmp_path: Path) -> None:
    files = {"README.md": CARD.encode(), "main/train-0.jsonl": b"1", "main/test-0.jsonl": b"2", "other/x.jsonl": b"3",
             "other/y.parquet": b"4"}  # fmt: skip
    commit = hub.push("org/name", files)
    asked = {"dataset": "org/name", "config": "main"}
    (found,) = pinned(tmp_path, asked)
    assert found == {**asked, "rows": None, "split": "train", "commit": commit,
                     "files": {"main/train-0.jsonl": hashlib.sha256(b"1").hexdigest()}}  # fmt: skip
    (other,) = pinned(tmp_path, {"dataset": "org/name", "path": "**/*.parquet"})
    assert list(other["files"]) == ["other/y.parquet"]
    assert "split" not in other
    hub.asked.clear()
    twice = pinned(tmp_path, {**asked, "rows": 5}, {**asked, "rows": 7}, known=[found])
    assert hub.asked == []
    assert [item["rows"] for item in twice] == [5, 7]
    (alone,) = pinned(tmp_path, {"dataset": "org/name", "path": "other/y.parquet"})
    assert (alone["sha256"], "files" in alone) == (other["files"]["other/y.parquet"], False)
    hub.asked.clear()
    pinned(tmp_path, {"dataset": "org/name", "path": "other/x.jsonl"}, {"dataset": "org/name", "path": "other/x.jsonl"})
    assert sum("/api/" in request for request in hub.asked) == 1


def test_what_a_data_set_lacks_is_said_with_what_it_has(hub: Hub, tmp_path: Path) -> None:
    files = {"README.md": CARD.encode(), "main/train-0.jsonl": b"1", "main/test-0.jsonl": b"2", "other/x.jsonl": b"3"}
    hub.push("org/name", files)
    hub.push("org/script", {"script.py": b"", "README.md": b""})
    hub.push("org/broken", {"README.md": b"---\n: [\n---\n", "a.jsonl": b""})
    found = refused(tmp_path, {"dataset": "org/name", "config": "main", "split": "dev"})
    assert (found.message, found.hint) == ("the data set `org/name` has no split `dev`",
                                           "its splits are `train`, `test`; `path` names files")  # fmt: skip
    found = refused(tmp_path, {"dataset": "org/name"})
    assert (found.message, found.hint) == ("the data set `org/name` has several configurations",
                                           "add `config`, one of `main`, `other`")  # fmt: skip
    assert "has no configuration `x`" in refused(tmp_path, {"dataset": "org/name", "config": "x"}).message
    assert "has no file `x.jsonl`" in refused(tmp_path, {"dataset": "org/name", "path": "x.jsonl"}).message
    assert "revision: refs/convert/parquet" in (refused(tmp_path, {"dataset": "org/script"}).hint or "")
    assert "is not valid YAML" in refused(tmp_path, {"dataset": "org/broken"}).message
    assert "has no data set `org/none` at revision `main`" in refused(tmp_path, {"dataset": "org/none"}).message
    assert "does not let us read `gated/name`" in refused(tmp_path, {"dataset": "gated/name"}).message


def test_a_preset_is_what_its_name_stood_for_in_the_lock(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("openai/gsm8k", {"README.md": CARD.encode(), "main/train-0.jsonl": b"1"})
    (found,) = pinned(tmp_path, {"preset": "gsm8k", "weight": 0.5})
    assert found["columns"] == {"prompt": "question", "completion": "answer"}
    assert (found["dataset"], found["licence"], found["split"]) == ("openai/gsm8k", "mit", "train")
    monkeypatch.setattr("specc.core.resolve.data.PRESETS", {})  # of another release
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (again,) = pinned(tmp_path, {"preset": "gsm8k", "weight": 0.7}, known=[found])
    assert again == {**found, "weight": 0.7}


def test_an_address_is_hashed_and_what_is_cut_off_is_not_pinned(hub: Hub, tmp_path: Path) -> None:
    hub.commits["plain"] = {"": {"a.jsonl": b"x" * 3_000_000}}
    url = f"{hub.endpoint}/plain/a.jsonl"
    assert pinned(tmp_path, {"url": url})[0]["sha256"] == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    hub.cut = 1
    assert refused(tmp_path, {"url": url}).message == f"`{url}` was cut off after 1500000 of 3000000 bytes"
    hub.broken = 1
    assert "the server answered 503" in refused(tmp_path, {"url": url}).message


def test_offline_nobody_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for item in ({"url": f"{hub.endpoint}/plain/a.jsonl"}, {"dataset": "org/name"}, {"preset": "gsm8k"}):
        assert "is not pinned by a lock" in refused(tmp_path, item).message
    assert hub.asked == []


def test_what_a_lock_does_not_pin_is_said_without_asking(tmp_path: Path) -> None:
    lock = tree({"dataset": "org/name", "split": "train", "commit": "c", "files": {}}, {"preset": "gsm8k", "files": {}})
    same = tree({"dataset": "org/name"}, {"preset": "gsm8k"}, {"file": "new.jsonl"})
    assert unpinned_data(same, lock, DOCUMENT) == []
    other = tree({"dataset": "org/name", "revision": "v2"}, {"dataset": "org/name", "split": "test"},
                 {"preset": "ultrachat"}, {"url": "https://h/a.jsonl"})  # fmt: skip
    found = unpinned_data(other, lock, DOCUMENT)
    assert [error.id for error in found] == ["E0311"] * 4
    assert [error.message for error in found] == [
        "the lock pins no commit of the data set `org/name`", "the lock pins no commit of the data set `org/name`",
        "the lock pins no commit of the preset `ultrachat`", "the lock pins no sha256 of `https://h/a.jsonl`",
    ]  # fmt: skip
