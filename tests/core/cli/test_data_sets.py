"""Prompts of a data set on a hub: pinned by the lock, fetched once by a stage, and never asked for again."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from projects import Project, make_project

COMMITS = ("1" * 40, "2" * 40)
ROW = {"question_id": 1, "category": "coding", "turns": ["Sort a list.", "Now backwards."]}
SPEC = """\
evaluate:
  prompts:
    - dataset: org/questions
      path: data/question.jsonl
      categories: [coding]
  max_tokens: 64
  grid: {batch_sizes: [1]}
"""


class Hub(BaseHTTPRequestHandler):
    """The hub's protocol for a data set: what a commit holds, and for a download commit, ETag, size and bytes."""

    moved: bool
    asked: list[str]
    data: bytes

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        commit, data = COMMITS[self.moved], b""
        if self.path.startswith("/api/datasets/org/questions/revision/main"):
            data = json.dumps({"sha": commit, "siblings": [{"rfilename": "data/question.jsonl"}]}).encode()
        elif self.path.removeprefix("/datasets/org/questions/resolve/") in {
            f"{one}/data/question.jsonl" for one in COMMITS
        }:
            data = self.data
        self.send_response(200 if data else 404)
        self.send_header("X-Repo-Commit", COMMITS[0])
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    data = json.dumps(ROW).encode() + b"\n"
    kind = type("Mine", (Hub,), {"moved": False, "asked": [], "data": data})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # and not what `--offline` leaves behind in this process
    yield kind
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path, hub: type[Hub]) -> Project:
    made = make_project(tmp_path / "project", tmp_path / "store")
    spec = made.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + SPEC)
    assert hub
    return made


def locked(project: Project) -> dict[str, Any]:
    return json.loads((project.folder / "tiny.lock.json").read_text())["locked"]["values"]["evaluate"]


def test_a_lock_pins_the_commit_and_the_bytes_and_then_nobody_is_asked(project: Project, hub: type[Hub]) -> None:
    project.run("lock", "tiny.yaml")
    (source,) = locked(project)["prompts"]
    assert (source["commit"], source["sha256"]) == (COMMITS[0], hashlib.sha256(hub.data).hexdigest())
    assert locked(project)["grid"]["speculative_tokens"] == [3], "derived from what the export asks for"
    hub.moved = True
    hub.asked.clear()
    project.run("lock", "--check", "tiny.yaml")
    out, _ = project.run("plan", "--json", "tiny.yaml")
    stages = {item["stage"]: item for item in json.loads(out)["stages"]}
    assert {"prompts", "evaluation", "benchmark"} <= set(stages)
    assert "prompts" in stages["benchmark"]["waits_for"]
    assert hub.asked == []
    project.run("lock", "--upgrade", "data", "tiny.yaml")
    assert locked(project)["prompts"][0]["commit"] == COMMITS[1]


def test_a_locked_build_asks_no_hub_for_what_is_not_pinned(project: Project, hub: type[Hub]) -> None:
    project.run("lock", "tiny.yaml")
    spec = project.folder / "tiny.yaml"
    spec.write_text(spec.read_text().replace("data/question.jsonl", "data/other.jsonl"))
    hub.asked.clear()
    _, err = project.run("build", "--locked", "tiny.yaml", expect=1)
    assert "the lock pins no commit of the data set `org/questions`" in err
    assert hub.asked == []
    _, err = project.run("lock", "tiny.yaml", expect=1)
    assert "the data set `org/questions` has no file `data/other.jsonl`" in err


@pytest.mark.engine
def test_the_stage_fetches_the_pinned_bytes(project: Project, hub: type[Hub]) -> None:
    project.run("build", "--stage", "prompts", "tiny.yaml")
    path = project.artifact("prompts") / "org/questions/data/question.jsonl"
    assert path.read_bytes() == hub.data
    hub.asked.clear()
    _, err = project.run("build", "--stage", "prompts", "--offline", "tiny.yaml")
    assert "nothing to do" in err
    assert hub.asked == []


@pytest.mark.engine
def test_other_bytes_than_the_pinned_ones_are_refused(project: Project, hub: type[Hub]) -> None:
    project.run("lock", "tiny.yaml")
    hub.data += b"\n"
    _, err = project.run("build", "--stage", "prompts", "tiny.yaml", expect=3)
    assert "the hub sent another file than the lock pins" in err
