"""A hub on this machine: as much of its HTTP protocol as the clients of models and data sets speak."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".parquet", ".arrow", ".gz", ".safetensors", ".bin")
"""Suffixes of files that the hub keeps apart, and states the sha256 of."""


@dataclass
class Hub:
    """Models and data sets by their ids, each with commits (`{path: bytes}`) and branches that point to them.

    `cut` counts down: so many downloads break off half-way. `asked` are the requests, in order.
    """

    commits: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict[str, Any])
    branches: dict[str, dict[str, str]] = field(default_factory=dict[str, Any])
    cut: int = 0
    broken: int = 0
    asked: list[str] = field(default_factory=list[str])
    endpoint: str = ""

    def push(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make a commit of a repository's files, which a branch points to from now on; return its id."""
        said = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in files.items()}, sort_keys=True)  # noqa: S324 - git's own
        commit = hashlib.sha1((repo + branch + said).encode()).hexdigest()  # noqa: S324 - as above
        self.commits.setdefault(repo, {})[commit] = dict(files)
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def find(self, repo: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Return the commit that a revision is, and its files."""
        commit = self.branches.get(repo, {}).get(revision, revision)
        files = self.commits.get(repo, {}).get(commit)
        return None if files is None else (commit, files)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a port of this machine, which `endpoint` says."""
    handler = type("Bound", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def entry(name: str, data: bytes) -> dict[str, Any]:
    """Return what the hub says of a file."""
    oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()  # noqa: S324 - git's own
    found: dict[str, Any] = {"type": "file", "oid": oid, "size": len(data), "path": name}
    if name.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self, *, head: bool = False) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place, _, _ = self.path.partition("?")
        self.hub.asked.append(f"{self.command} {self.path}")
        parts = [urllib.parse.unquote(part) for part in place.strip("/").split("/")]
        match parts:
            case ["plain", name]:
                self._file(self.hub.commits["plain"][""][name], {}, head=head)
            case ["api", "datasets" | "models", org, name, *rest]:
                self._api(f"{org}/{name}", rest, body)
            case ["datasets", org, name, "resolve", revision, *path] | [org, name, "resolve", revision, *path]:
                self._resolve(f"{org}/{name}", revision, "/".join(path), head=head)
            case _:
                self._error(404, "RepoNotFound")

    def _api(self, repo: str, rest: list[str], body: bytes) -> None:
        if repo.startswith("gated/"):
            self._error(403, "GatedRepo")
            return
        what, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        found = self.hub.find(repo, revision)
        if found is None:
            self._error(404, "RevisionNotFound" if repo in self.hub.commits else "RepoNotFound")
            return
        commit, files = found
        entries = [entry(name, data) for name, data in files.items()]
        if what == "revision":
            siblings = [{"rfilename": one["path"], "size": one["size"], "blobId": one["oid"],
                         **({"lfs": {"sha256": one["lfs"]["oid"], "size": one["size"], "pointerSize": 134}}
                            if "lfs" in one else {})} for one in entries]  # fmt: skip
            self._json({"id": repo, "sha": commit, "siblings": siblings, "private": False, "gated": False,
                        "disabled": False, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
            return
        folders = {"/".join(name.split("/")[:end]) for name in files for end in range(1, name.count("/") + 1)}
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
        if what == "paths-info":
            asked = urllib.parse.parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            self._json([one for one in entries if one["path"] in asked])
            return
        inside = "/".join(rest[2:])
        if inside and inside not in folders:
            self._error(404, "EntryNotFound")
            return
        deep = "recursive=True" in self.path or "recursive=true" in self.path
        below = [one for one in entries if not inside or one["path"].startswith(inside + "/")]
        if not deep:
            below = [one for one in below if "/" not in one["path"][len(inside) + 1 if inside else 0 :]]
        self._json(below)

    def _resolve(self, repo: str, revision: str, path: str, *, head: bool) -> None:
        found = self.hub.find(repo, revision)
        if found is None or path not in found[1]:
            self._error(404, "EntryNotFound" if found else "RevisionNotFound")
            return
        one = entry(path, found[1][path])
        said = {"X-Repo-Commit": found[0], "ETag": f'"{one["lfs"]["oid"] if "lfs" in one else one["oid"]}"',
                "X-Linked-Size": str(one["size"])}  # fmt: skip
        self._file(found[1][path], said, head=head)

    def _file(self, data: bytes, said: Mapping[str, str], *, head: bool) -> None:
        if self.hub.broken > 0 and not head:
            self.hub.broken -= 1
            self._error(503, "ServiceUnavailable")
            return
        start, code, extra = 0, 200, dict(said)
        if (wanted := self.headers.get("Range")) and not head:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, code = int(first), 206
            extra["Content-Range"] = f"bytes {start}-{last or len(data) - 1}/{len(data)}"
            data = data[start : int(last) + 1 if last else None]
        self.send_response(code)
        for name, value in {**extra, "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if head:
            return
        if self.hub.cut > 0:
            self.hub.cut -= 1
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data)

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, code: int, name: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass
