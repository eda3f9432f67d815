"""`specc serve`: the command for a checkpoint, by id and by spec, and what is refused before a server starts."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from pathlib import Path

import pytest

import serving
from specc.core.cli import main
from specc.core.contracts import Manifest
from specc.core.store import Store

EVERY = "0.0.0.0"  # noqa: S104 - only printed
SPEC = """\
version: 1
name: tiny-speculator
verifier:
  model: ./tiny
draft:
  algorithm: eagle3
data:
  sources:
    - file: prompts.jsonl
"""


def seal(store: Store, stage: str, name: str, processes: int = 1, **inputs: str) -> Manifest:
    """Put an artifact of one file into the store; `processes` are those of the verifier that its states are from."""
    folder = store.root.parent / stage
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(f'"{stage}"\n')
    params = {
        "name": name,
        "draft": {"algorithm": "eagle3"},
        "export": {"speculative_tokens": 3},
        "verifier": {"dtype": "bfloat16", "config": {"model_type": "llama"}},
    }
    if processes > 1:
        states = serving.seal(store, "hidden_states", name, folder, {}, {"tensor_parallel": processes})
        params["stages"] = {"hidden_states": {"key": states.key}}
    return serving.seal(store, stage, name, folder, params, **inputs)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "a store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return Store(tmp_path / "a store")


@pytest.fixture
def checkpoint(store: Store) -> Manifest:
    verifier = seal(store, "verifier", "tiny-speculator")
    return seal(store, "checkpoint", "tiny-speculator", verifier=verifier.digest)


@pytest.mark.parametrize("by", ["id", "spec"])
def test_the_command_has_both_paths_and_is_quoted(
    by: str, checkpoint: Manifest, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("specc.core.cli.serve.detect_class", lambda: ("cpu", "avx2"))
    target = checkpoint.digest[:12] if by == "id" else "tiny.yaml"
    assert main(["serve", target, "--dry-run", "--port", "8123"]) == 0
    words = shlex.split(capsys.readouterr().out)
    verifier, speculator = store.path(checkpoint.inputs["verifier"]), store.path(checkpoint.digest)
    assert words[:5] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(verifier)]
    flags = dict(zip(words[5:-1:2], words[6:-1:2], strict=True))
    assert json.loads(flags.pop("--speculative-config")) == {
        "method": "eagle3",
        "model": str(speculator),
        "num_speculative_tokens": 3,
    }
    assert flags == {
        "--served-model-name": "tiny-speculator",
        "--dtype": "bfloat16",
        "--host": "127.0.0.1",
        "--port": "8123",
    }
    assert words[-1] == "--enforce-eager"


def test_a_gpu_is_served_by_vllm_serve(
    checkpoint: Manifest, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("specc.core.cli.serve.detect_class", lambda: ("cuda", "cuda"))
    assert main(["serve", "tiny.yaml", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["command"][:3] == ["vllm", "serve", str(store.path(checkpoint.inputs["verifier"]))]
    assert "--enforce-eager" not in said["command"]
    assert said["url"] == "http://127.0.0.1:8000/v1"


@pytest.mark.usefixtures("checkpoint")
def test_further_flags_come_last_and_none_of_ours_is_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "tiny.yaml", "--dry-run", "--", "--max-model-len", "2048", "--no-enforce-eager"]) == 0
    assert shlex.split(capsys.readouterr().out)[-3:] == ["--max-model-len", "2048", "--no-enforce-eager"]
    for word in ("--port=1", "--served-model", "--speculative_config.method", "--model", "--dtype"):
        assert main(["serve", "tiny.yaml", "--dry-run", "--", word, "x"]) == 2
        assert f"error: `{word}` is given to vLLM already" in capsys.readouterr().err
    assert main(["serve", "tiny.yaml", "--dry-run", "--", "--uds", "x"]) == 2
    assert "`--uds` is not passed on to vLLM" in capsys.readouterr().err


def test_a_verifier_that_was_spread_is_served_so_unless_told_otherwise(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    verifier = seal(store, "verifier", "tiny-speculator")
    seal(store, "checkpoint", "tiny-speculator", 4, verifier=verifier.digest)
    assert main(["serve", "tiny.yaml", "--dry-run"]) == 0
    assert " --tensor-parallel-size 4 " in capsys.readouterr().out
    for flags in (["--tensor-parallel-size", "8"], ["--tensor-parallel-size=8"], ["-tp", "8"]):
        assert main(["serve", "tiny.yaml", "--dry-run", "--", *flags]) == 0
        words = shlex.split(capsys.readouterr().out)
        assert words[-len(flags) :] == flags
        assert words.count("--tensor-parallel-size") == flags.count("--tensor-parallel-size")


@pytest.mark.usefixtures("checkpoint")
def test_the_verifier_alone_has_no_speculative_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "tiny.yaml", "--dry-run", "--json", "--without-speculator", "--host", EVERY]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "--speculative-config" not in said["command"]
    assert said["speculator"] is None
    assert said["command"][said["command"].index("--host") + 1] == EVERY
    assert said["url"] == "http://127.0.0.1:8000/v1"


@pytest.mark.usefixtures("checkpoint")
def test_a_port_in_use_is_said_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "tiny.yaml", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"error: port {port} of 127.0.0.1 is in use\n\nhint: `--port 0` takes a free one\n"
    )
    assert main(["serve", "tiny.yaml", "--host", "192.0.2.1"]) == 2  # an address of the documentation (RFC 5737)
    assert "`192.0.2.1` is not an address of this machine" in capsys.readouterr().err


@pytest.mark.usefixtures("checkpoint")
def test_a_variable_that_is_not_set_is_not_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert main(["serve", "tiny.yaml", "--dry-run", "--env", "VLLM_API_KEY"]) == 2
    assert "`--env VLLM_API_KEY` names a variable that is not set" in capsys.readouterr().err
    assert main(["serve", "tiny.yaml", "--dry-run", "--env", "VLLM_API_KEY=a-secret"]) == 0
    assert "a-secret" not in str(capsys.readouterr())


def test_what_is_no_checkpoint_is_refused(
    checkpoint: Manifest, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    verifier = checkpoint.inputs["verifier"][:12]
    assert main(["serve", verifier, "--dry-run"]) == 1
    assert "is an artifact of the stage `verifier`, and a checkpoint is asked for" in capsys.readouterr().err
    store.remove(checkpoint.inputs["verifier"])
    assert main(["serve", "tiny.yaml", "--dry-run"]) == 1
    assert f"no artifact `{verifier}` in the store" in capsys.readouterr().err


@pytest.mark.usefixtures("store")
def test_a_spec_that_was_never_built_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "tiny.yaml", "--dry-run"]) == 1
    assert "`tiny-speculator` was never built here" in capsys.readouterr().err
    assert main(["serve", "nothing.yaml", "--dry-run"]) == 1
    assert "nothing.yaml" in capsys.readouterr().err
