"""A stage's process: how it is started, what it says, and how it is brought to its end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final

from specc.core.contracts import Event, Failure, Note, Progress, StageJob, StageResult, load_event
from specc.core.errors import Exit, SpeccError
from specc.core.execute.devices import cores_of, gpus_of
from specc.core.execute.environment import environment, free_port
from specc.core.execute.processes import await_exit, await_group, has_exited, kill_group
from specc.core.files import remove_tree, write_atomic, writing

LONGEST: Final = 1 << 20
"""Bytes of a line that may be an event; an engine that prints more of them without an end is no reason to hold them."""


class Running:
    """A process that runs a job in a group of its own; `end` is the last word that it said, if it has said one.

    The kernel kills it when the thread that started it ends, so it is followed by that same thread.
    """

    def __init__(
        self, job: StageJob, package: str, log: Path, lock: int | None, interpreter: str = sys.executable
    ) -> None:
        """Start `python -m specc.<package>` in the job's work folder, its key's lock in its hands if there is one.

        Raises `SpeccError` if the interpreter cannot be started, if there is no writing to the disk, or if its devices
        are not there.
        """
        gpus, cores = gpus_of(job), cores_of(job)
        work = Path(job.work)
        with writing(work):
            remove_tree(work / "tmp")
            for folder in ("home", "tmp"):
                (work / folder).mkdir(parents=True, exist_ok=True)
            write_atomic(work / "JOB.json", job.dump())
            log.parent.mkdir(exist_ok=True)
            self._log: BinaryIO = log.open("ab", buffering=0)
        self.job, self.path = job, log
        self.end: StageResult | Failure | None = None
        self._rest = b""
        # Short, and not in the store: a socket's path may have 107 bytes.
        spread = "tensor_parallel" in job.facets
        self._sockets = TemporaryDirectory(prefix="specc-", ignore_cleanup_errors=True) if spread else None
        try:
            with writing(work):
                self._log.write(
                    f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {job.stage} {job.key}\n".encode()
                )
            self.process = subprocess.Popen(
                [interpreter, "-P", "-m", f"specc.{package}", str(work / "JOB.json")],
                cwd=work,
                env=environment(
                    job.facets,
                    work,
                    free_port(),
                    hub=bool(job.context.get("hub")),
                    endpoint="endpoint" in job.context,
                    loggers=job.context.get("loggers", ()),
                    sockets=self._sockets and self._sockets.name,
                    gpus=gpus,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                pass_fds=() if lock is None else (lock,),
                process_group=0,
            )
            if cores is not None:  # threads inherit it, and there is but one yet
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(self.process.pid, cores)
        except OSError as error:
            self._close()
            raise SpeccError(
                f"the interpreter `{interpreter}` cannot be started: {error.strerror}",
                hint="name the Python of an environment that specc is installed in",
                code=Exit.STAGE,
            ) from error
        except BaseException:
            self._close()
            raise

    def fileno(self) -> int:
        """Return the pipe of its events."""
        if self.process.stdout is None:
            raise AssertionError
        return self.process.stdout.fileno()

    @property
    def exited(self) -> bool:
        """Whether it has ended; its number stays its own until `stop`."""
        return has_exited(self.process.pid)

    def read(self) -> Iterator[Progress | Note] | None:
        """Return the events that can be read now; None if no more will come. The last word goes to `end`."""
        chunk = os.read(self.fileno(), 1 << 16)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST:
            lines, self._rest = [*lines, self._rest], b""
        return self._events(lines)

    def _events(self, lines: list[bytes]) -> Iterator[Progress | Note]:
        for line in lines:
            match _event(line):
                case StageResult() | Failure() as event:
                    self.end = event
                case None:  # printed before the stage turned its output away from the pipe
                    with suppress(OSError):
                        self._log.write(line + b"\n")
                case event:
                    yield event

    def ask(self) -> None:
        """Ask it to end."""
        kill_group(self.process.pid, signal.SIGTERM)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, at most so many seconds."""
        await_exit(self.process.pid, seconds)

    def stop(self) -> int:
        """End it if it still runs, with whatever it started and left, and return its exit code.

        Nothing of that must write into an output that is being sealed. It is waited for last, so that its number, and
        so its group's, is nobody else's.
        """
        kill_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        await_group(self.process.pid)
        self._close()
        if self.process.stdout:
            self.process.stdout.close()
        return self.process.returncode

    def _close(self) -> None:
        self._log.close()
        if self._sockets is not None:
            self._sockets.cleanup()


def _event(line: bytes) -> Event | None:
    """Read a line; None if it is no event, or one whose values are not what they should be."""
    try:
        event = load_event(line.decode())
        match event:
            case Progress(done=done, total=total, unit=str(), text=str()):
                good = all(math.isfinite(number) for number in (done, total or 0))
            case Note(text=str()) | StageResult(record=dict()) | Failure(message=str(), code=int()):
                good = True
            case _:
                good = False
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return event if good else None
