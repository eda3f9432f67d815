"""`specc push` against a server on this machine that speaks the hub's protocol and can cut a connection."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from projects import Project
from safetensor import one_tensor
from serving import seal
from specc.core.cli import main
from specc.core.contracts import Manifest
from specc.core.files import pretty
from specc.core.store import Store

pytest.importorskip("huggingface_hub")

TOKEN = "hf_a-token-that-nobody-sees"
COMMIT = "c0ffee" + "0" * 34
PART = 1000
"""Bytes of a part: what is larger goes up in several."""


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a push speaks with; large files are stored by their sha256."""

    protocol_version = "HTTP/1.1"
    repos: dict[str, dict[str, Any]]
    branches: list[str]
    objects: dict[str, bytes]
    parts: dict[tuple[str, int], bytes]
    puts: list[str]
    cut: bool
    commits: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub, base = type(self), f"http://127.0.0.1:{self.server.server_port}"  # pyright: ignore
        if not self.path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            code = 409 if name in hub.repos else 200
            hub.repos.setdefault(name, {"visibility": asked.get("visibility")})
            return self._send(code, {"url": f"{base}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if "/branch/" in self.path:
            hub.branches.append(self.path.rsplit("/", 1)[1])
            return self._send(200, {})
        if "/preupload/" in self.path:
            files = [{"path": one["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self._send(200, {"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [self._object(one, base) for one in json.loads(body)["objects"]]
            return self._send(200, {"transfer": "multipart", "objects": objects})
        if self.path.startswith("/lfs/complete/"):
            oid = self.path.rsplit("/", 1)[1]
            numbers = [one["partNumber"] for one in json.loads(body)["parts"]]
            return self._keep(oid, b"".join(hub.parts[oid, number] for number in numbers))
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            hub.commits.append({"revision": self.path.rsplit("/", 1)[1], "lines": lines})
            repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
            return self._send(200, {"commitUrl": f"{base}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        return self._send(404, {})

    def do_PUT(self) -> None:
        hub, (oid, number) = type(self), self.path.removeprefix("/lfs/").split("/")
        if hub.cut and number == "2":
            self.rfile.read(100)
            self.close_connection = True
            self.connection.close()
            return
        hub.puts.append(f"{oid}/{number}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if number == "0":
            self._keep(oid, data)
        else:
            hub.parts[oid, int(number)] = data
            self._send(200, {}, ETag=f'"{number}"')

    def _object(self, asked: dict[str, Any], base: str) -> dict[str, Any]:
        """Say how to send an object; one that is here needs nothing."""
        oid, size = asked["oid"], asked["size"]
        if oid in type(self).objects:
            return asked
        count = -(-size // PART)
        if count == 1:
            return {**asked, "actions": {"upload": {"href": f"{base}/lfs/{oid}/0"}}}
        header = {"chunk_size": str(PART)} | {str(n): f"{base}/lfs/{oid}/{n}" for n in range(1, count + 1)}
        return {**asked, "actions": {"upload": {"href": f"{base}/lfs/complete/{oid}", "header": header}}}

    def _keep(self, oid: str, data: bytes) -> None:
        good = hashlib.sha256(data).hexdigest() == oid
        if good:
            type(self).objects[oid] = data
        self._send(200 if good else 422, {})

    def _send(self, code: int, value: dict[str, Any], **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {**headers, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.repos, Hub.branches, Hub.objects, Hub.parts, Hub.puts, Hub.commits = {}, [], {}, {}, [], []
    Hub.cut = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # the protocol that this server does not speak
    # The library reads its environment once, and other tests may have imported it.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between tries
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A checkpoint of a few files, one of them large enough to be sent in three parts."""
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store, name = Store(tmp_path / "store"), "tiny-speculator"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    contents = {
        "README.md": "# tiny\n", "config.json": pretty({"speculators_config": {"verifier": {}}}), "specc.json": "{}\n",
        "provenance.json": pretty({"subject": []}),
    }  # fmt: skip
    for file, content in contents.items():
        (folder / file).write_text(content)
    (folder / "model.safetensors").write_bytes(one_tensor((0.5,) * 600))
    (tmp_path / "verifier").mkdir()
    (tmp_path / "verifier/model.safetensors").write_bytes(one_tensor())
    verifier = seal(store, "verifier", name, tmp_path / "verifier", {})
    params = {"name": name, "draft": {"algorithm": "eagle3"}, "export": {"speculative_tokens": 3}}
    return seal(store, "checkpoint", name, folder, params, verifier=verifier.digest)


def files(hub: type[Hub], number: int = -1) -> dict[str, bytes]:
    """Return the files of a commit, the large ones from where they were sent to."""
    found: dict[str, bytes] = {}
    for line in hub.commits[number]["lines"]:
        if line["key"] == "file":
            found[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "lfsFile":
            found[line["value"]["path"]] = hub.objects[line["value"]["oid"]]
    return found


def test_a_push_is_one_commit_of_what_export_writes(
    hub: type[Hub], checkpoint: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = checkpoint.digest[:12]
    assert main(["push", target, "org/tiny", "--private", "--revision", "v1", "--verifier", "org/base"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith(f"/org/tiny/commit/{COMMIT}\n")
    assert TOKEN not in said.out + said.err
    assert hub.repos["org/tiny"]["visibility"] == "private"
    assert (hub.branches, [commit["revision"] for commit in hub.commits]) == (["v1"], ["v1"])
    assert hub.commits[0]["lines"][0]["value"]["summary"] == f"tiny-speculator, sha256:{checkpoint.digest}"
    assert main(["export", target, "--to", "out", "--verifier", "org/base"]) == 0
    assert files(hub) == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_after_a_cut_connection_the_same_command_sends_what_is_missing(
    hub: type[Hub], checkpoint: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cut = True
    assert main(["push", checkpoint.digest[:12], "org/tiny"]) == 3
    said = capsys.readouterr().err
    assert "was not reached, or the connection was cut" in said
    assert "try again: the same command goes on" in said
    assert (hub.commits, hub.objects) == ([], {})
    hub.cut = False
    assert main(["push", checkpoint.digest[:12], "org/tiny"]) == 0
    (large,) = hub.objects
    assert hub.puts[-3:] == [f"{large}/{number}" for number in (1, 2, 3)]
    hub.puts.clear()
    assert main(["push", checkpoint.digest[:12], "org/tiny", "--message", "once more"]) == 0
    assert hub.puts == [], "the hub has it"
    assert files(hub)["model.safetensors"] == hub.objects[large]
    assert len(hub.commits) == 2


def test_a_hub_that_refuses_or_is_not_there_is_said_in_words(
    hub: type[Hub], checkpoint: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = checkpoint.digest[:12]
    monkeypatch.setenv("HF_TOKEN", "hf_another-one")
    assert main(["push", target, "org/tiny"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: the hub does not let us write to `org/tiny`")
    assert "hint: set `HF_TOKEN` to a token that may write there" in said
    assert "hf_another-one" not in said
    assert main(["push", target, "a/b/c"]) == 2
    assert "`a/b/c` is not the name of a repository" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", target, "org/tiny"]) == 3
    assert "the hub at http://127.0.0.1:9 was not reached" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["push", target, "org/tiny"]) == 2
    assert "forbids to reach the hub" in capsys.readouterr().err
    assert hub.repos == {}


def test_a_user_needs_no_more_than_the_environment(hub: type[Hub], checkpoint: Manifest, tmp_path: Path) -> None:
    done = Project(tmp_path, tmp_path / "store").specc("push", checkpoint.digest[:12], "mine", "--json")
    assert json.loads(done.stdout)["commit"].endswith(f"/me/mine/commit/{COMMIT}")
    assert TOKEN not in done.stdout + done.stderr
    assert list(hub.repos) == ["me/mine"]
