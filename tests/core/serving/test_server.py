"""The mechanism under `specc serve`: a child that is waited for, and of which nothing is left. No engine is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from specc.core.errors import SpeccError
from specc.core.execute.environment import free_port
from specc.core.execute.guard import descendants
from specc.core.measure.acceptance import counted
from specc.core.serving.server import Server, own, reason, serving
from waiting import wait_until

SERVER = """
import http.server, os, subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{mark}"], **how)
            for how in ({{}}, {{"start_new_session": True}})]
print("VARIABLES", *sorted(os.environ), flush=True)

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/fail":
            os._exit(7)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Answer).serve_forever()
"""
"""A server of three processes, one of them in a session of its own."""


def of(mark: str) -> list[int]:
    """Return the processes that have `mark` in their command line, but for zombies."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def gone(mark: str, seconds: float = 20) -> bool:
    """Wait until no process has `mark` in its command line."""
    deadline = time.monotonic() + seconds
    while of(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not of(mark)


def serve(folder: Path, script: str, port: int, **how: Any) -> AbstractContextManager[Server]:
    return serving([sys.executable, "-c", script], name="toy", host="127.0.0.1", port=port, home=folder / "home",
                   log=folder / "log", variables={"SAID": "so"}, device="cpu", **how)  # fmt: skip


def test_a_server_is_ready_when_it_is_healthy_and_all_of_it_ends_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VLLM_USE_V1", "OMP_NUM_THREADS", "LD_PRELOAD_NOT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "127.0.0.1:9")
    port, mark = free_port(), f"mark-{tmp_path}"
    with serve(tmp_path, SERVER.format(mark=mark, port=port), port) as server:
        assert server.url == f"http://127.0.0.1:{port}"
        assert len(of(mark)) == 4  # and the guard, which has the script in its command line
        names = next(line for line in server.log.read_text().splitlines() if line.startswith("VARIABLES")).split()[1:]
    assert of(mark) == []
    assert set(names) - {"PYTHONPATH", "PYTHONUSERBASE"} == {
        "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "HOME", "LC_ALL", "PATH", "PYTHONUNBUFFERED",
        "SAID", "TMPDIR", "TOKENIZERS_PARALLELISM", "TZ", "VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS",
    }  # fmt: skip


def test_on_a_gpu_a_server_sees_the_callers_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert own("cuda")["CUDA_VISIBLE_DEVICES"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in own("cuda")
    assert own("cpu") == {"VLLM_CPU_KVCACHE_SPACE": "4"}


def test_a_server_that_ends_by_itself_is_an_error(tmp_path: Path) -> None:
    port, mark = free_port(), f"mark-{tmp_path}"
    with serve(tmp_path, SERVER.format(mark=mark, port=port), port) as server:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /fail HTTP/1.0\r\n\r\n")
        with pytest.raises(SpeccError, match="the server ended, with exit code 7") as caught:
            server.wait()
    assert caught.value.code == 3
    assert str(tmp_path / "log") in (caught.value.hint or "")
    assert gone(mark)


def test_a_server_that_dies_while_it_loads_says_why_in_its_own_words(tmp_path: Path) -> None:
    script = """if True:
    print("(APIServer pid=1) INFO 11-28 a harmless ValueError: that was caught", flush=True)
    print("(EngineCore pid=2) ERROR 11-28 10:16:55 [core.py:1] ValueError: no room for one request", flush=True)
    raise RuntimeError("Engine core initialization failed. See root cause above.")
    """
    (tmp_path / "log").write_text("--- before\nKeyError: of an earlier run\n")
    with pytest.raises(SpeccError, match="ended before it was ready, with exit code 1") as caught:
        serve(tmp_path, script, free_port()).__enter__()
    assert caught.value.note == "ValueError: no room for one request"
    assert "-- --max-model-len 2048" in (caught.value.hint or "")


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpeccError) as caught:
        serving(["no-such-vllm"], name="toy", host="127.0.0.1", port=1, home=tmp_path, log=tmp_path / "log",
                variables={}, device="cuda").__enter__()  # fmt: skip
    assert caught.value.note == "cannot start `no-such-vllm`: No such file or directory"


def test_a_server_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    mark = f"mark-{tmp_path}"
    heard: list[str] = []
    script = f"import time; print('still loading', flush=True); time.sleep(600)  # {mark}"
    with pytest.raises(SpeccError, match="the server is not ready after 4 s") as caught:
        serve(tmp_path, script, free_port(), seconds=4, waiting=lambda _, line: heard.append(line)).__enter__()
    assert caught.value.note == "still loading"
    assert "still loading" in heard
    assert gone(mark)


STARTER = """
import sys
from pathlib import Path
from specc.core.execute import terminable
from specc.core.serving.server import serving
with terminable(), serving([sys.executable, "-c", sys.argv[1]], name="toy", host="127.0.0.1", port=int(sys.argv[2]),
        home=Path(sys.argv[3]), log=Path(sys.argv[3]) / "log", variables={}, device="cpu") as server:
    print("ready", flush=True)
    server.wait()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2)],
)
def test_no_process_is_left_however_the_starter_ends(tmp_path: Path, number: int, code: int) -> None:
    port, mark = free_port(), f"mark-{tmp_path}"
    script = SERVER.format(mark=mark, port=port)
    starter = subprocess.Popen([sys.executable, "-c", STARTER, script, str(port), str(tmp_path)],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert starter.stdout
    with starter.stdout:
        assert starter.stdout.readline() == "ready\n"
        assert len(descendants(starter.pid)) == 4
        starter.send_signal(number)
        assert starter.wait(20) == code
    assert gone(mark)


@pytest.mark.parametrize("victim", ["guard", "server"])
def test_no_process_is_left_when_one_in_the_middle_is_killed(tmp_path: Path, victim: str) -> None:
    port, mark = free_port(), f"mark-{tmp_path}"
    with serve(tmp_path, SERVER.format(mark=mark, port=port), port) as server:
        guard = server.process.pid
        child = next(pid for pid in descendants(guard) if parent(pid) == guard)
        os.kill(guard if victim == "guard" else child, signal.SIGKILL)
        with pytest.raises(SpeccError, match="the server ended"):
            server.wait()
    # What left the guard's group for a session of its own outlives the guard alone: nobody else looks for it.
    expected = 1 if victim == "guard" else 0
    wait_until(lambda: len(of(mark)) <= expected)
    left = of(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) == expected


def parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def test_vllms_counters_are_summed_over_engines() -> None:
    text = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 2.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.79e+09
vllm:spec_decode_num_draft_tokens_total{engine="0"} 36.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 6.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 2.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="1"} 0.0
vllm:spec_decode_num_accepted_tokens_per_pos_created{engine="0",position="0"} 1.79e+09
"""
    found = counted(text)
    assert found is not None
    assert (found.drafts, found.draft_tokens, found.accepted, found.per_position) == (12, 36, 6, (4, 2))
    assert found.as_json()["mean_acceptance_length"] == 1.5
    assert counted("") is None


def test_a_log_without_an_exception_gives_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("--- now\nusage: vllm\nserver.py: error: unrecognized arguments: --nonsense\n\n")
    assert reason(tmp_path / "log") == "error: unrecognized arguments: --nonsense"
    (tmp_path / "log").write_text(
        "--- now\n(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "(APIServer pid=1)   Value error, max_model_len (9999) is greater than 512 [type=value_error, input_value=x]\n"
    )
    assert reason(tmp_path / "log") == "max_model_len (9999) is greater than 512"
    (tmp_path / "log").write_text("--- now\nKilled\n")
    assert reason(tmp_path / "log") == "Killed"
    assert reason(tmp_path / "none") is None
