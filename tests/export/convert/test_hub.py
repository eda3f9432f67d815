"""A draft on a hub, which is a server on this machine that speaks its protocol: pinned, fetched and converted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.convert import sources
from hub import Hub
from projects import Project
from small import make_verifier

pytestmark = pytest.mark.engine


def test_a_drafts_commit_and_files_are_pinned_and_a_moved_branch_changes_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = sources.safeailab().into(tmp_path / "hub", form="bin shards")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    commit = hub.push("org/draft", files, branch="v1")
    make_verifier(tmp_path / "verifier", layers=8, tie=False, dtype="float32")
    project = Project(tmp_path, tmp_path / "store")
    arguments = ("org/draft", "--revision", "v1", "--verifier", "./verifier", "--out", "new", "--json")
    first = json.loads(project.run("convert", *arguments)[0])
    values = json.loads((tmp_path / "new.lock.json").read_text())["locked"]["values"]
    assert values["source"] == {
        "asked_revision": "v1", "convert": "org/draft", "layout": "eagle3", "name": "org/draft", "revision": commit,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
                  if path.name == "config.json" or path.suffix == ".bin"},
    }  # fmt: skip
    weights = [path.name for path in folder.glob("*.bin")]
    assert all(any(path.endswith(name) for path in hub.asked) for name in weights)
    assert f"`{commit}`" in (tmp_path / "new/README.md").read_text()
    hub.asked.clear()
    hub.push("org/draft", {**files, "config.json": b"{}"}, branch="v1")
    again = json.loads(project.run("convert", *arguments)[0])
    assert again["artifacts"] == first["artifacts"]
    assert hub.asked == []
