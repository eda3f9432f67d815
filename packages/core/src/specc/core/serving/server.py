"""A vLLM server that specc starts, waits for, and takes down with every process of it."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from specc.core.errors import Exit, SpeccError
from specc.core.execute.environment import plain
from specc.core.execute.processes import guarded, has_exited
from specc.core.files import writing
from specc.core.measure.acceptance import Counts, counted

START: Final = 900
"""Seconds that a server has until it is healthy: the weights of a large verifier take minutes from a slow disk."""
POLL: Final = 0.25
CACHE_GIB: Final = "4"
"""Memory for keys and values on a CPU, where vLLM would take most of what the machine has."""
FROM_THE_CALLER: Final = (
    "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip
"""What says which GPUs there are and where their libraries are; on a CPU none of it reaches a server."""
TAIL: Final = 1 << 18
"""Bytes of a log in which the reason of a failure is looked for."""
_RAISED: Final = re.compile(r"(?:^|[\s.])([A-Z]\w*(?:Error|Exception): .*|error: (?:argument|unrecognized) .*)$")
_REFUSED: Final = re.compile(r"Value error, (.*?)(?: \[type=|$)")
_NOISE: Final = re.compile(r"\b(?:INFO|WARNING|DEBUG)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A healthy server; `url` has no path (`http://127.0.0.1:8000`)."""

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        """Wait until the server ends, which it does by itself only when it fails: raises `SpeccError` then."""
        while not has_exited(self.process.pid):
            time.sleep(POLL)
        raise _died("the server ended", self.process, self.log)

    def speculation(self) -> Counts:
        """Return what vLLM has counted of its drafts since it started (`/metrics`): nothing where it does not draft."""
        return counted(_get(f"{self.url}/metrics").decode()) or Counts()


def free(host: str, port: int) -> int:
    """Return a port of `host` that nothing listens on: `port` itself, or any one for 0.

    Raises `SpeccError` if `port` is taken, or if this machine has no such address.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just given up is free
            probe.bind(address)
            return int(probe.getsockname()[1])
    except PermissionError as error:
        raise SpeccError(f"port {port} is the system's own", hint="take one from 1024 on", code=Exit.USAGE) from error
    except (OSError, UnicodeError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        what = f"port {port} of {host} is in use" if taken else f"`{host}` is not an address of this machine"
        hint = "`--port 0` takes a free one" if taken else "`127.0.0.1` is this machine alone, `0.0.0.0` every address"
        raise SpeccError(what, hint=hint, code=Exit.USAGE) from error


@contextmanager
def serving(
    command: Sequence[str],
    *,
    name: str,
    host: str,
    port: int,
    home: Path,
    log: Path,
    variables: Mapping[str, str],
    device: str,
    seconds: float = START,
    waiting: Callable[[float, str], None] = lambda seconds, line: None,
) -> Generator[Server]:
    """Start a server, yield it once it is healthy, and take it down at the end of the block.

    `command` listens on `host` and `port`; `home` keeps vLLM's caches between starts; `log` is appended to. Its
    environment is made from nothing but `variables`, which go before ours. `waiting` is called now and then with
    the seconds since the start and the log's last line. Raises `SpeccError` (exit code 3) if the server ends before
    it is healthy, with the reason that its log has, or if it is not healthy after so many `seconds`.
    """
    with writing(log.parent):
        home.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab", buffering=0)
    # Short, and not in the store: vLLM's processes speak through sockets below it, whose paths may have 107 bytes.
    with file, tempfile.TemporaryDirectory(prefix="specc-", ignore_cleanup_errors=True) as temporary:
        file.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {name}\n".encode())
        environment = {**plain(home, Path(temporary)), **own(device)}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # `vllm` itself
        environment |= variables
        with guarded(command, environment=environment, folder=home, log=file) as process:
            server = Server(name=name, url=f"http://{reached(host)}:{port}", log=log, process=process)
            _await_health(server, seconds, waiting)
            yield server


def own(device: str) -> dict[str, str]:
    """Return what a server's environment has on a device beside what every process of ours has."""
    if device == "cuda":
        return {name: os.environ[name] for name in FROM_THE_CALLER if name in os.environ}
    return {"VLLM_CPU_KVCACHE_SPACE": CACHE_GIB}


def _await_health(server: Server, seconds: float, waiting: Callable[[float, str], None]) -> None:
    started = time.monotonic()
    while True:
        if has_exited(server.process.pid):
            raise _died("the server ended before it was ready", server.process, server.log)
        with suppress(OSError):
            _get(f"{server.url}/health")
            return
        passed = time.monotonic() - started
        if passed > seconds:
            raise SpeccError(
                f"the server is not ready after {seconds:.0f} s",
                note=_last(server.log),
                hint=f"`--timeout` gives it longer; the whole log is {server.log}",
                code=Exit.STAGE,
            )
        waiting(passed, _last(server.log) or "")
        time.sleep(POLL)


def _get(url: str) -> bytes:
    """Read from a server of ours: no proxy is asked for a way to this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return answer.read()


def reached(host: str) -> str:
    """Return where a server that listens on `host` is reached from this machine."""
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - asked for
    return f"[{named}]" if ":" in named and not named.startswith("[") else named


def _died(what: str, process: subprocess.Popen[bytes], log: Path) -> SpeccError:
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number stays on the books
    return SpeccError(
        f"{what}, with exit code {end.si_status if end else 'unknown'}",
        note=reason(log),
        hint=f"the whole log is {log}; further flags of vLLM go after `--`, as in `-- --max-model-len 2048`",
        code=Exit.STAGE,
    )


def reason(log: Path) -> str | None:
    """Return why an engine failed: the first exception of its last run, which the others follow from."""
    lines = _lines(log)
    for index, line in enumerate(lines):
        if (match := _RAISED.search(line)) and not _NOISE.search(line):
            # pydantic says what is wrong two lines below, and the exception only how many things are.
            below = (_REFUSED.search(other) for other in lines[index + 1 : index + 4])
            refused = next((other[1] for other in below if other), None) if "validation error" in match[1] else None
            return (refused or match[1]).strip()[:300]
    return _last(log)


def _last(log: Path) -> str | None:
    """Return the last thing that an engine said in its last run."""
    said = next((line for line in reversed(_lines(log)) if line), None)
    return said[:300] if said else None


def _lines(log: Path) -> list[str]:
    """Return the last lines of a log, of its last run alone."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return []
    starts = [index for index, line in enumerate(lines) if line.startswith("--- ")]
    return lines[starts[-1] + 1 :] if starts else lines
