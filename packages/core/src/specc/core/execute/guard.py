"""Run a command for as long as whoever started it lives, and leave none of its processes behind.

`python -P -m specc.core.execute.guard COMMAND...` has the starter's end of a pipe as its standard input. When that pipe
closes, however the starter died, or on SIGTERM, SIGINT or SIGHUP, the command is ended; when the command is over, by
itself too, whatever it started and left is killed. A server of vLLM is three processes and a load of GuideLLM a dozen:
a parent-death signal would reach the first of them alone.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from specc.core.errors import Exit

GRACE: Final = 8.0
"""Seconds that a command has between SIGTERM and SIGKILL."""
POLL: Final = 0.1
PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36


def main(command: Sequence[str]) -> int:
    """Run a command to its end, or to that of standard input; return its exit code, 128 + n after signal n."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become our children, and are found
    asked = list[int]()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda found, _: asked.append(found))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_too)  # noqa: PLW1509 - one thread
    except OSError as error:
        print(f"cannot start `{command[0]}`: {error.strerror}", file=sys.stderr)
        return Exit.STAGE
    while process.poll() is None and not asked:
        if select.select([0], [], [], POLL)[0] and not os.read(0, 1 << 10):
            break
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    deadline = time.monotonic() + GRACE
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL / 10)
    code = process.wait()
    return code if code >= 0 else 128 - code


def descendants(root: int) -> list[int]:
    """Return the processes below `root` that still run, from /proc; none where there is no such folder."""
    parents, running = dict[int, int](), set[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            # A process names itself as it likes between the first bracket and the last one.
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            parents[int(entry.name)] = int(parent)
            if state not in "ZX":
                running.add(int(entry.name))
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted((below - {root}) & running)


def _die_too() -> None:
    """Between fork and exec: if this guard is killed itself, the command is not left without one."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
