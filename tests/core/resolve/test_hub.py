"""The hub's HTTP interface, spoken to by a real server on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from specc.core.errors import SpeccError
from specc.core.resolve import hub
from specc.core.resolve.verifier import find

COMMIT = "c0ffee" + "0" * 34
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128, "vocab_size": 400,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "eos_token_id": 7,
    "tie_word_embeddings": False,
}  # fmt: skip
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b'{"version":"1.0"}',
    "tokenizer_config.json": json.dumps({"chat_template": "{{ messages[0].role }}"}).encode(),
    "model.safetensors": b"weights that nobody fetches",
    "README.md": b"# a model",
}


class Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path.startswith("/api/models/org/gated"):
            return self._send(403, b"")
        if self.path.startswith("/api/models/org/tiny/revision/main"):
            siblings: list[dict[str, Any]] = [{"rfilename": name} for name in FILES]
            for item in siblings:
                if item["rfilename"] == "model.safetensors":
                    item["lfs"] = {"sha256": hashlib.sha256(FILES["model.safetensors"]).hexdigest()}
            return self._send(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        name = self.path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        return self._send(200, FILES[name]) if name in FILES else self._send(404, b"")

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Hub.asked
    server.shutdown()
    server.server_close()


def _section(model: str, revision: str | None = None) -> dict[str, Any]:
    return {"model": model, "revision": revision}


def test_a_hub_model_is_pinned_by_commit_and_sha256_without_its_weights(asked: list[str], tmp_path: Path) -> None:
    found = find(_section("org/tiny"), tmp_path, lambda path: "", None)
    assert found.facts["revision"] == COMMIT
    assert found.facts["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in FILES.items() if name != "README.md"
    }
    assert found.facts["config"]["rope_parameters"] == {"rope_type": "default", "rope_theta": 1000000.0}
    assert found.facts["config"]["eos_token_ids"] == [7]
    assert not any("model.safetensors" in path for path in asked)


def test_with_a_lock_the_hub_is_not_asked(asked: list[str], tmp_path: Path) -> None:
    facts = find(_section("org/tiny"), tmp_path, lambda path: "", None).facts
    asked.clear()
    again = find(_section("org/tiny"), tmp_path, lambda path: "", {"model": "org/tiny", **facts})
    assert again.facts == facts
    assert asked == []


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_no_hub_is_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(SpeccError, match="`org/tiny` is not pinned by a lock") as caught:
        hub.model("org/tiny", "main")
    assert "lock where there is a network" in (caught.value.hint or "")
    assert asked == []


def test_a_gated_and_a_missing_model_are_told_apart(asked: list[str], tmp_path: Path) -> None:
    with pytest.raises(SpeccError) as caught:
        hub.model("org/gated", "main")
    assert "HF_TOKEN" in (caught.value.hint or "")
    with pytest.raises(SpeccError, match=r"no model `org/none` at revision `main`"):
        hub.model("org/none", "main")


def test_no_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SpeccError, match="cannot be reached"):
        hub.model("org/tiny", "main")
