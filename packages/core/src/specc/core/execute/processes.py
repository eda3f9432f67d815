"""Children that are waited for without taking their numbers off the books: no other process gets one meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from specc.core.errors import Exit, SpeccError
from specc.core.execute.guard import GRACE

POLL: Final = 0.05


def signal_name(code: int) -> str:
    """Return the name of the signal that ended a child, whose exit code is its negative number."""
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def kill_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a group of processes, if there is one."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def has_exited(pid: int) -> bool:
    """Tell whether a child has ended, without taking its number off the books."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def await_exit(pid: int, seconds: float | None = None) -> None:
    """Wait until a child has ended, at most so many seconds."""
    if seconds is None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not has_exited(pid):
        time.sleep(POLL)


def await_group(pid: int) -> None:
    """Wait until the last process of a killed group is gone; not long, for nobody may be there to reap it."""
    deadline = time.monotonic() + 1
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(pid, 0)
            time.sleep(POLL / 5)


@contextmanager
def guarded(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: BinaryIO
) -> Generator[subprocess.Popen[bytes]]:
    """Run a command in `folder` under the guard, its output in `log`; at the end of the block it is stopped.

    Then, and when this process dies in any way, whatever the command has started ends too.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "specc.core.execute.guard", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    except OSError as error:
        raise SpeccError(f"`{sys.executable}` cannot be started: {error.strerror}", code=Exit.STAGE) from error
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()  # which ends the guard
        await_exit(process.pid, 2 * GRACE + 1)
        kill_group(process.pid, signal.SIGKILL)
        process.wait()
