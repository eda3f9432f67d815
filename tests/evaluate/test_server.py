"""vLLM's own server, with a speculator, measured from outside by `specc evaluate --url`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import drafts
from small import make_verifier, write_prompts
from specc.core.cli import main
from specc.core.measure.prompts import read_source
from specc.evaluate import render

pytestmark = pytest.mark.engine

PROMPTS, MAX_TOKENS, START = 6, 12, 120.0


@dataclass(frozen=True)
class Served:
    url: str
    prompts: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a small verifier with a draft that is right at times, in fp32."""
    folder = tmp_path_factory.mktemp("server")
    verifier = drafts.calm(make_verifier(folder / "verifier", layers=8, heads=2, kv_heads=1, dtype="float32"))
    prompts = write_prompts(folder / "held-out.jsonl", PROMPTS)
    asked = render(read_source(prompts, prompts.name, {}, None), verifier, "2026-11-23")
    values = drafts.resolved(verifier, vocabulary=4)
    values["export"]["dtype"] = values["verifier"]["dtype"] = "float32"
    checkpoint = drafts.assemble(folder / "c", values, verifier, tokens=drafts.habits(verifier, asked, 4))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    speculative = {"method": "eagle3", "model": str(checkpoint), "num_speculative_tokens": 3}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(verifier), "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--max-num-seqs", "4",
        "--speculative-config", json.dumps(speculative), "--per-request-spec-decode-metrics", "summary",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True,
            env={**drafts.environment(folder), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START
            while not _is_up(port):
                waits = process.poll() is None and time.monotonic() < deadline
                assert waits, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield Served(f"http://127.0.0.1:{port}/v1", prompts)
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_what_vllm_s_server_accepts_is_counted_answer_by_answer(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    out = tmp_path / "server.json"
    asked = ["--prompts", str(served.prompts), "--max-tokens", str(MAX_TOKENS), "--repeats", "2", "--batch-size", "3"]
    # The same server stands in for one without a speculator: what is tested is that both are asked in turn.
    assert main(["evaluate", "--url", served.url, "--plain-url", served.url, *asked, "--to", str(out)]) == 0
    found = json.loads(out.read_text())
    (cell,) = found["cells"]
    assert (cell["speculative_tokens"], cell["batch_size"], found["prompts"]) == (3, 3, PROMPTS)
    assert cell["draft_tokens"] == 3 * cell["drafts"] > 0
    assert sum(cell["accepted_per_position"]) == cell["accepted"] > 0
    (subset,) = cell["subsets"].values()
    assert {name: cell[name] for name in subset} == subset, "the counts of each answer are those of `/metrics`"
    assert cell["interval"][0] <= cell["mean_acceptance_length"] <= cell["interval"][1]
    assert cell["lossless"] == {"identical": PROMPTS, "prompts": PROMPTS}
    assert 0 < cell["output_tokens"] <= PROMPTS * MAX_TOKENS
    (speed,) = found["speeds"]["cells"]
    assert speed["tokens_per_second"] > 0
    assert "temperature 0, 3 at once" in capsys.readouterr().out
