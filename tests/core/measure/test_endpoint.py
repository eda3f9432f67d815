"""A server that is measured from outside: what it answers, what it counts, and all that can be wrong with it.

vLLM's own server is asked in tests/evaluate/test_server.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from specc.core.cli import main
from specc.core.errors import Position, SpeccError
from specc.core.measure.acceptance import Counts, counted
from specc.core.measure.endpoint import drive
from specc.core.measure.prompts import Prompt

PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}.0
vllm:spec_decode_num_drafts_created{{engine="0",model_name="m"}} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="m"}} {tokens}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="0"}} {accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",model_name="m",position="1"}} 0.0
"""
PROMPTS = [Prompt(({"role": "user", "content": f"{number}?"},), Position("p", 1, 1), "odd" if number % 2 else "even")
           for number in range(5)]  # fmt: skip


class Server(BaseHTTPRequestHandler):
    """Answers with three tokens, of two drafts of two of which one was accepted each."""

    asked = 0
    most = 0
    now = 0
    each = True
    wrong: str | None = None
    keys: set[str | None] = set()  # noqa: RUF012 - each test has a class of its own
    tools: list[Any] = []  # noqa: RUF012 - as above
    lock = threading.Lock()

    def do_GET(self) -> None:
        kind = type(self)
        kind.keys.add(self.headers.get("Authorization"))
        if kind.wrong == "html":
            return self._send(200, b"<html></html>")
        if self.path == "/v1/models":
            return self._send(200, json.dumps({"data": [{"id": "m"}]}).encode())
        if self.path == "/metrics" and kind.wrong != "no metrics":
            page = PAGE.format(drafts=2 * kind.asked, tokens=4 * kind.asked, accepted=2 * kind.asked)
            return self._send(200, b"python_gc 1.0\n" if kind.wrong == "plain" else page.encode())
        return self._send(404, b"")

    def do_POST(self) -> None:
        kind = type(self)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if kind.wrong == "slow":
            time.sleep(2)
        if kind.wrong == "refuses":
            return self._send(400, b'{"error": {"message": "max_tokens is too large"}}')
        if kind.wrong == "key":
            return self._send(401, b"")
        kind.tools.append([body.get("tools"), body.get("tool_choice")])
        with kind.lock:
            kind.asked, kind.now = kind.asked + 1, kind.now + 1
            kind.most = max(kind.most, kind.now)
        time.sleep(0.005)
        with kind.lock:
            kind.now -= 1
        usage = {} if kind.wrong == "uncounted" else {"completion_tokens": 3}
        answer: dict[str, Any] = {"choices": [{"message": {"content": body["messages"][0]["content"]}}], "usage": usage}
        if kind.each:
            answer["metrics"] = {"speculative_decoding": {"acceptance_histogram": [0, 2, 0], "num_draft_tokens": 4}}
        return self._send(200, json.dumps(answer).encode())

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError):  # of one that did not wait
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Server]]]:
    kind = type("Mine", (Server,), {"keys": set(), "tools": [], "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield f"http://127.0.0.1:{server.server_port}/v1", kind
    server.shutdown()
    server.server_close()


def ask(url: str, *, plain: str | None = None, timeout: float = 20.0, **options: Any) -> dict[str, Any]:
    return drive(url, PROMPTS, plain_url=plain, timeout=timeout, say=lambda _: None, max_tokens=8, repeats=2,
                 **{"temperatures": [0.0], "batch_sizes": [2], **options})  # fmt: skip


def test_a_prompt_is_asked_with_its_tools(served: tuple[str, type[Server]]) -> None:
    url, kind = served
    tools = json.dumps([{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}])
    drive(url, [*PROMPTS[:1], replace(PROMPTS[1], tools=tools)], plain_url=None, timeout=20.0, say=lambda _: None,
          max_tokens=8, repeats=2, temperatures=[0.0], batch_sizes=[1])  # fmt: skip
    assert kind.tools[-2:] == [[None, None], [json.loads(tools), "none"]]


def test_a_server_is_counted_and_timed_in_a_closed_loop(served: tuple[str, type[Server]]) -> None:
    url, kind = served
    found = ask(url, plain=url, temperatures=[0.0, 0.5])
    assert kind.most == 2
    assert kind.asked == 2 * 5 * 6, "one run that counts and two that are timed, with and without the speculator"
    cell, heated = found["cells"]
    half = {"drafts": 10, "draft_tokens": 20, "accepted": 10, "accepted_per_position": [10, 0], "output_tokens": 15,
            "mean_acceptance_length": 2.0, "interval": [2.0, 2.0]}  # fmt: skip
    assert {name: cell[name] for name in half} == half
    assert cell["subsets"]["even"]["drafts"] == 6
    assert found["subsets"] == {"even": {"prompts": 3}, "odd": {"prompts": 2}}
    assert (cell["lossless"], heated["lossless"]) == ({"identical": 5, "prompts": 5}, None)
    assert (cell["speculative_tokens"], found["runtime"]) == (2, "endpoint")
    speed = found["speeds"]["cells"][0]
    assert speed["interval"][0] <= speed["speedup"] <= speed["interval"][1]
    assert len(found["speeds"]["advice"]) == 2


def test_a_server_alone_that_counts_no_single_answers_has_no_intervals(served: tuple[str, type[Server]]) -> None:
    url, kind = served
    kind.each = False
    found = ask(url)
    (cell,) = found["cells"]
    assert (cell["mean_acceptance_length"], cell["interval"], cell["subsets"]) == (2.0, None, {})
    (speed,) = found["speeds"]["cells"]
    assert (speed["speedup"], speed["plain_tokens_per_second"]) == (None, None)
    assert found["speeds"]["advice"] == []


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        ("html", "is not that of an OpenAI-compatible server", "`/v1`"),
        ("no metrics", "`/metrics` cannot be read", "--disable-log-stats"),
        ("plain", "speculates nothing", "--plain-url"),
        ("slow", "did not answer in 0.3 s", "--timeout"),
        ("refuses", "answered 400", "log"),
        ("key", "answered 401", "OPENAI_API_KEY"),
        ("uncounted", "does not count its tokens", "OpenAI"),
    ],
)
def test_what_is_wrong_with_a_server_is_said(
    served: tuple[str, type[Server]], wrong: str, message: str, hint: str
) -> None:
    url, kind = served
    kind.wrong = wrong
    with pytest.raises(SpeccError, match=message) as caught:
        ask(url, timeout=0.3)
    assert hint in (caught.value.hint or "")
    assert caught.value.code == 3
    if wrong == "refuses":
        assert caught.value.note == "max_tokens is too large"


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://127.0.0.1:9/v1", "cannot be reached"), ("file:///etc/passwd", "is not an http address")],
)
def test_no_server_is_a_sentence(url: str, message: str) -> None:
    with pytest.raises(SpeccError, match=message):
        ask(url)


def test_the_key_goes_to_the_server_and_into_no_output(
    served: tuple[str, type[Server]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, kind = served
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "Why?"}\n')
    assert main(["evaluate", "--url", url, "--prompts", "p.jsonl", "--repeats", "2", "--to", "out.json"]) == 0
    assert kind.keys == {"Bearer sk-secret"}
    said = capsys.readouterr()
    assert "sk-secret" not in said.out + said.err + Path("out.json").read_text()
    assert "no artifact" in said.err
    assert "2.000" in said.out
    assert main(["diff", "out.json", "out.json"]) == 0
    said = capsys.readouterr().out
    assert "mean acceptance length" in said
    assert "overlap" in said


def test_counters_of_several_engines_are_summed() -> None:
    page = PAGE.format(drafts=3, tokens=6, accepted=2)
    two = page + page.replace('engine="0"', 'engine="1"')
    assert counted(two) == Counts(drafts=6, draft_tokens=12, accepted=4, per_position=(4, 0))
    assert counted("vllm:num_requests 3\n") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "one thing is measured"),
        (["evaluate", "spec.yaml", "--url", "http://x/v1"], "one thing is measured"),
        (["evaluate", "spec.yaml", "--tokens", "3"], "`--tokens` is not for a spec"),
        (["evaluate", "abcdef", "--to", "x"], "`--to` is not for a checkpoint"),
        (["evaluate", "--url", "http://x/v1", "--tokens", "3"], "`--tokens` is not for a server"),
        (["evaluate", "--url", "http://x/v1"], "needs a file"),
        (["evaluate", "--url", "http://x/v1", "--to", "x.json"], "there are no prompts to ask"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
