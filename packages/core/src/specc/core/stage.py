"""The stage's side of the boundary: read a job, run one function, report in events, die with the compiler."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from specc.core.contracts import Event, Failure, Note, Progress, StageJob, StageResult, dump_event
from specc.core.errors import Exit, SpeccError
from specc.core.files import FULL, digest_of, link_or_copy, sha256_file, storage_error, sync, write_atomic, writing

PR_SET_PDEATHSIG: Final = 1
StageFunction = Callable[["Stage"], None]


class Stage:
    """A running stage: its job, and the ways in which it speaks to the compiler."""

    def __init__(self, job: StageJob, emit: Callable[[Event], None]) -> None:
        self.job = job
        self.params = job.params
        self.facets = job.facets
        self.output = Path(job.output)
        self.work = Path(job.work)
        self.record: dict[str, Any] = {}
        """Times, rates and counts of this run; kept beside the artifact."""
        self._emit = emit

    def input(self, name: str) -> Path:
        """Return the folder of an input artifact."""
        return Path(self.job.inputs[name].path)

    def file(self, name: str) -> Path:
        """Return where a file outside the store is on this machine."""
        return Path(self.job.files[name])

    def progress(self, done: float, total: float | None, unit: str, text: str = "") -> None:
        """Say how far the work is."""
        self._emit(Progress(done=done, total=total, unit=unit, text=text))

    def note(self, text: str) -> None:
        """Say a sentence that the user should see."""
        self._emit(Note(text=text))

    def warn(self, text: str) -> None:
        """Say a sentence that the user should not overlook."""
        self._emit(Note(text=text, level="warning"))

    def unit(self, material: Mapping[str, Any], name: str, write: Callable[[Path], None]) -> bool:
        """Put a finished unit of work (a shard) at `name` in the output; return whether it was there already.

        `material` is all that decides the unit's bytes besides the stage, its version and its facets. A unit
        is shared whole and under its own key, so a killed stage goes on after the last one, and a stage of
        another key (more data, say) takes over those it shares.
        """
        key = digest_of({"stage": self.job.stage, "version": self.job.version, "facets": dict(self.facets),
                         "unit": dict(material)})  # fmt: skip
        stored = Path(self.job.units) / key[:2] / f"{key}{Path(name).suffix}"
        target = self.output / name
        target.parent.mkdir(parents=True, exist_ok=True)
        found = _taken(stored, target)
        if not found:
            write(target)  # in the output, which goes as a whole when the stage is killed
            with writing(stored.parent):
                _share(target, stored)
        return found


def _taken(stored: Path, target: Path) -> bool:
    """Give a finished unit its name in the output; False if it is not there or is not what was sealed.

    It gets the name first and is looked at then: so it cannot be taken away in between.
    """
    try:
        seal = _seal(stored).read_bytes()
        link_or_copy(stored, target)
        if sha256_file(target).encode() == seal:
            return True
    except OSError:
        pass
    target.unlink(missing_ok=True)
    return False


def _share(target: Path, stored: Path) -> None:
    """Let other runs take a finished unit; the seal says that it is whole."""
    target.chmod(0o644)
    sync(target)
    for path in (_seal(stored), stored):
        path.unlink(missing_ok=True)
    link_or_copy(target, stored)
    write_atomic(_seal(stored), sha256_file(target))


def _seal(stored: Path) -> Path:
    return stored.with_name(stored.name + ".sha256")


def run(stages: Mapping[str, StageFunction], argv: list[str] | None = None) -> int:
    """Run the stage that `JOB.json` names and return its exit code: 0, or that of its failure.

    Engines print to file descriptors 1 and 2 as they like: both go to the log that the compiler gave as
    standard error, and events go to the pipe that was standard output. Of several ranks the first one speaks; the
    others only say why they failed.
    """
    die_with_parent()
    arguments = sys.argv[1:] if argv is None else argv
    shared = os.environ.get("SPECC_EVENTS")  # a rank's way to the pipe, through its launcher
    events = open(shared, "w", buffering=1) if shared else os.fdopen(os.dup(1), "w", buffering=1)  # noqa: PTH123, SIM115
    os.dup2(2, 1)
    first = os.environ.get("RANK", "0") == "0"

    def emit(event: Event) -> None:
        if not (first or isinstance(event, Failure)):
            return
        with suppress(BrokenPipeError):
            events.write(dump_event(event) + "\n")
            events.flush()

    if len(arguments) != 1:
        emit(Failure(message="a stage takes one argument, the path of its job", code=Exit.USAGE))
        return Exit.USAGE
    try:
        job = StageJob.load(Path(arguments[0]))
        stage = Stage(job, emit)
        started = time.monotonic()
        if job.stage not in stages:
            raise SpeccError(f"this package has no stage `{job.stage}`", code=Exit.STAGE)  # noqa: TRY301
        stages[job.stage](stage)
        stage.record["seconds"] = round(time.monotonic() - started, 3)
        stage.record["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        emit(StageResult(record=stage.record))
    except SpeccError as error:
        emit(Failure(message=error.message, where=str(error.where) if error.where else None, hint=error.hint,
                     code=error.code))  # fmt: skip
        return error.code
    except MemoryError:
        emit(Failure(message="the stage ran out of memory", hint="give it less per batch, or a larger machine"))
        return Exit.STAGE
    except Exception as error:  # noqa: BLE001 - an engine may raise anything; the log keeps the traceback
        with suppress(OSError):  # the disk that is full may be the log's
            traceback.print_exception(error)
        emit(_raised(error, Path(arguments[0]).parent))
        return Exit.STAGE
    return Exit.OK


def _raised(error: Exception, folder: Path) -> Failure:
    """Say what an engine raised; a full disk is said to be one, in whichever of its exceptions an engine wraps it."""
    cause: BaseException | None = error
    while cause is not None:
        for number in FULL:
            if (isinstance(cause, OSError) and cause.errno == number) or os.strerror(number) in str(cause):
                full = storage_error(OSError(number, os.strerror(number)), folder)
                return Failure(message=full.message, where=str(full.where), hint=full.hint)
        cause = cause.__cause__ or cause.__context__
    first = next(iter(str(error).splitlines()), "")
    return Failure(message=f"the engine raised {type(error).__name__}" + (f": {first[:300]}" if first else ""))


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the compiler dies (Linux, prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    expected = os.environ.get("SPECC_PARENT")
    if expected is not None and os.getppid() != int(expected):
        os._exit(Exit.TERMINATED)
