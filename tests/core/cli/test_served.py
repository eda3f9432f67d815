"""`specc serve` with vLLM itself, asked by the official client: with the speculator and without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving import PROMPTS
from specc.core.execute.guard import descendants
from specc.core.measure.acceptance import Counts
from specc.core.serving.served import Served
from specc.core.serving.server import Server

pytestmark = pytest.mark.engine

CALLERS = {"OMP_NUM_THREADS": "77", "VLLM_USE_V1": "0", "VLLM_LOGGING_LEVEL": "ERROR", "LD_PRELOAD_X": "x"}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that `specc serve` runs, and what the command said of it."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    def speculation(self) -> Counts:
        url = self.said["url"].removesuffix("/v1")
        return Server(name="", url=url, log=Path(self.said["log"]), process=self.process).speculation()


@pytest.fixture(scope="module")
def servers(small_served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    """One server with the speculator and one without; they start at the same time."""
    folder, digest = tmp_path_factory.mktemp("servers"), small_served.checkpoint.digest
    command = [str(Path(sys.executable).parent / "specc"), "serve", digest[:12], "--port", "0", "--json",
               "--env", "VLLM_CPU_KVCACHE_SPACE=1"]  # fmt: skip
    environment = {**os.environ, **CALLERS, "SPECC_STORE": str(small_served.store.root)}
    further = ["--", "--max-model-len", "256"]
    started = [
        subprocess.Popen([*command, *own, *further], cwd=folder, env=environment, stdout=subprocess.PIPE,
                         stderr=(folder / f"words-{number}").open("w"), text=True)
        for number, own in enumerate(([], ["--without-speculator"]))
    ]  # fmt: skip
    try:
        yield tuple(Running(process, _said(process, folder / f"words-{number}"))  # pyright: ignore
                    for number, process in enumerate(started))  # fmt: skip
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def _said(process: subprocess.Popen[str], words: Path) -> dict[str, Any]:
    """Read the object that the command prints once the server is ready."""
    text = ""
    for line in process.stdout or ():
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(words.read_text())


def _texts(running: Running) -> list[str]:
    """Return greedy answers of both of the interfaces, whole and streamed."""
    from openai import OpenAI

    found: list[str] = []
    with OpenAI(base_url=running.said["url"], api_key="none", max_retries=0, timeout=60) as client:
        (model,) = client.models.list()
        assert model.id == "small-eagle3"
        how: dict[str, Any] = {"model": model.id, "max_tokens": 32, "temperature": 0}
        for prompt in PROMPTS:
            found.append(client.completions.create(prompt=prompt, **how).choices[0].text)
            streamed = client.completions.create(prompt=prompt, stream=True, **how)
            assert "".join(part.choices[0].text for part in streamed) == found[-1]
        for prompt in PROMPTS[:2]:
            messages: Any = [{"role": "user", "content": prompt}]
            found.append(client.chat.completions.create(messages=messages, **how).choices[0].message.content or "")
            parts = client.chat.completions.create(messages=messages, stream=True, **how)
            assert "".join(part.choices[0].delta.content or "" for part in parts) == found[-1]
    return found


def test_greedy_text_is_the_same_with_and_without_the_speculator_and_drafts_are_accepted(
    servers: tuple[Running, Running],
) -> None:
    speculating, plain = servers
    texts = _texts(speculating)
    assert len(set(texts)) > 1
    assert texts == _texts(plain)
    counts = speculating.speculation()
    assert counts.drafts > 0
    assert counts.accepted == sum(counts.per_position) > 0
    assert counts.draft_tokens == 3 * counts.drafts
    assert plain.speculation() == Counts(drafts=0, draft_tokens=0, accepted=0, per_position=())


def test_a_seed_repeats_what_is_drawn_with_a_draft(servers: tuple[Running, Running]) -> None:
    """The server has the plugin that mends temperatures: without it they are what was in memory before."""
    from openai import OpenAI

    said = set[str]()
    with OpenAI(base_url=servers[0].said["url"], api_key="none", max_retries=0, timeout=60) as client:
        for _ in range(4):
            drawn = client.completions.create(
                model="small-eagle3", prompt=PROMPTS[0], max_tokens=32, temperature=0.7, seed=3
            )
            said.add(drawn.choices[0].text)
    assert len(said) == 1


def test_what_the_command_says_is_what_runs(servers: tuple[Running, Running]) -> None:
    speculating, plain = servers
    assert Path(speculating.said["log"]).read_text().startswith("--- ")
    assert "'max_model_len': 256" in Path(speculating.said["log"]).read_text()
    assert plain.said["speculator"] is None
    guard, server, *_ = descendants(speculating.process.pid)
    words = (Path("/proc") / str(server) / "cmdline").read_bytes().split(b"\0")[:-1]
    assert [word.decode() for word in words] == speculating.said["command"]
    environment = dict(
        item.split("=", 1) for item in (Path("/proc") / str(server) / "environ").read_text().split("\0") if item
    )
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert not CALLERS.keys() & environment.keys()
    assert guard != server


def test_nothing_is_left_of_a_server_when_its_command_is_killed_or_stopped(servers: tuple[Running, Running]) -> None:
    speculating, plain = servers
    for running, number, code in ((speculating, signal.SIGKILL, -9), (plain, signal.SIGINT, 130)):
        before = descendants(running.process.pid)
        assert len(before) >= 4, "the guard, the server, its engine, the engine's worker"
        started = {pid: _start(pid) for pid in before}
        running.process.send_signal(number)
        assert running.process.wait(60) == code
        deadline = time.monotonic() + 30
        while (left := [pid for pid in before if _start(pid) == started[pid]]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []


def _start(pid: int) -> str | None:
    """Return when a process began, which tells it from another of the same number; None if it runs no more."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if fields[0] not in "ZX" else None
