"""What tests wait for: something that another process does, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something, and fail if it does not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Tell whether a process has ended (one that nobody has waited for yet is a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
