"""Prompts of a data set on a hub: pinned by the lock, fetched once by a stage, and never asked for again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from hub import Hub
from projects import Project, make_project
from specc.core.cli.load import _of_spec
from specc.core.errors import SpeccError

PATH = "data/question.jsonl"
ROW = {"question_id": 1, "category": "coding", "turns": ["Sort a list.", "Now backwards."]}
DATA = json.dumps(ROW).encode() + b"\n"
SPEC = """\
evaluate:
  prompts:
    - dataset: org/questions
      path: data/question.jsonl
      categories: [coding]
  max_tokens: 64
  grid: {batch_sizes: [1]}
"""


@pytest.fixture
def project(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # and not what `--offline` leaves behind in this process
    hub.push("org/questions", {PATH: DATA})
    made = make_project(tmp_path / "project", tmp_path / "store")
    spec = made.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + SPEC)
    return made


def locked(project: Project) -> dict[str, Any]:
    return json.loads((project.folder / "tiny.lock.json").read_text())["locked"]["values"]["evaluate"]


def test_a_lock_pins_the_commit_and_the_bytes_and_then_nobody_is_asked(project: Project, hub: Hub) -> None:
    project.run("lock", "tiny.yaml")
    (source,) = locked(project)["prompts"]
    first = hub.branches["org/questions"]["main"]
    assert (source["commit"], source["sha256"]) == (first, hashlib.sha256(DATA).hexdigest())
    assert locked(project)["grid"]["speculative_tokens"] == [3], "derived from what the export asks for"
    moved = hub.push("org/questions", {PATH: DATA, "README.md": b"Read me."})
    hub.asked.clear()
    project.run("lock", "--check", "tiny.yaml")
    out, _ = project.run("plan", "--json", "tiny.yaml")
    stages = {item["stage"]: item for item in json.loads(out)["stages"]}
    assert {"prompts", "evaluation", "benchmark"} <= set(stages)
    assert "prompts" in stages["benchmark"]["waits_for"]
    assert hub.asked == []
    project.run("lock", "--upgrade", "data", "tiny.yaml")
    assert locked(project)["prompts"][0]["commit"] == moved


def test_a_locked_build_asks_no_hub_for_what_is_not_pinned(project: Project, hub: Hub) -> None:
    project.run("lock", "tiny.yaml")
    spec = project.folder / "tiny.yaml"
    spec.write_text(spec.read_text().replace("data/question.jsonl", "data/other.jsonl"))
    hub.asked.clear()
    _, err = project.run("build", "--locked", "tiny.yaml", expect=1)
    assert "the lock pins no commit of the data set `org/questions`" in err
    assert hub.asked == []
    _, err = project.run("lock", "tiny.yaml", expect=1)
    assert "the data set `org/questions` has no file `data/other.jsonl`" in err


def test_a_load_over_prompts_that_are_not_fetched_says_how_they_are(project: Project) -> None:
    project.run("lock", "tiny.yaml")
    with pytest.raises(SpeccError, match="the prompts of the data set `org/questions` are not fetched yet") as caught:
        _of_spec(project.folder / "tiny.yaml", ())
    assert "specc build --stage prompts" in (caught.value.hint or "")


@pytest.mark.engine
def test_the_stage_fetches_the_pinned_bytes(project: Project, hub: Hub) -> None:
    project.run("build", "--stage", "prompts", "tiny.yaml")
    path = project.artifact("prompts") / "org/questions/data/question.jsonl"
    assert path.read_bytes() == DATA
    assert _of_spec(project.folder / "tiny.yaml", ()) == (["Sort a list."], 64), "what a load asks too"
    hub.asked.clear()
    _, err = project.run("build", "--stage", "prompts", "--offline", "tiny.yaml")
    assert "nothing to do" in err
    assert hub.asked == []


@pytest.mark.engine
def test_other_bytes_than_the_pinned_ones_are_refused(project: Project, hub: Hub) -> None:
    project.run("lock", "tiny.yaml")
    hub.commits["org/questions"][hub.branches["org/questions"]["main"]] = {PATH: DATA + b"\n"}
    _, err = project.run("build", "--stage", "prompts", "tiny.yaml", expect=3)
    assert "the hub sent another file than the lock pins" in err
