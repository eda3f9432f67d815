"""A draft on a hub, which is a server on this machine that speaks its protocol: pinned, fetched and converted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.convert import sources
from projects import Project
from small import make_verifier

pytestmark = pytest.mark.engine
COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    """What a lock asks of a hub (a revision's commit and files), and what a download does (HEAD, GET)."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        type(self).asked.append(self.path)
        data = self._data()
        self.send_response(200 if data is not None else 404)
        data = data or b""
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _data(self) -> bytes | None:
        if self.path.startswith("/api/models/org/draft/revision/v1"):
            siblings = [
                {"rfilename": path.name, "lfs": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
                if path.suffix != ".json"
                else {"rfilename": path.name}
                for path in sorted(self.folder.iterdir())
            ]
            return json.dumps({"sha": COMMIT, "siblings": siblings}).encode()
        path = self.folder / self.path.removeprefix(f"/org/draft/resolve/{COMMIT}/")
        return path.read_bytes() if path.is_file() else None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.folder, Hub.asked = sources.safeailab().into(tmp_path / "hub", form="bin shards"), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_drafts_commit_and_files_are_pinned_and_a_moved_branch_changes_nothing(
    hub: type[Hub], tmp_path: Path
) -> None:
    make_verifier(tmp_path / "verifier", layers=8, tie=False, dtype="float32")
    project = Project(tmp_path, tmp_path / "store")
    arguments = ("org/draft", "--revision", "v1", "--verifier", "./verifier", "--out", "new", "--json")
    first = json.loads(project.run("convert", *arguments)[0])
    values = json.loads((tmp_path / "new.lock.json").read_text())["locked"]["values"]
    assert values["source"] == {
        "asked_revision": "v1", "convert": "org/draft", "layout": "eagle3", "name": "org/draft", "revision": COMMIT,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in hub.folder.iterdir()
                  if path.name == "config.json" or path.suffix == ".bin"},
    }  # fmt: skip
    weights = [path.name for path in hub.folder.glob("*.bin")]
    assert all(any(path.endswith(name) for path in hub.asked) for name in weights)
    assert f"`{COMMIT}`" in (tmp_path / "new/README.md").read_text()
    hub.asked.clear()
    (hub.folder / "config.json").write_text("{}")
    again = json.loads(project.run("convert", *arguments)[0])
    assert again["artifacts"] == first["artifacts"]
    assert hub.asked == []
