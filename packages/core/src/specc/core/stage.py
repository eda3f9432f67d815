"""The stage's side of the boundary: read a job, run one function, report in events, die with the compiler."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from specc.core.claims import Claims
from specc.core.contracts import Event, Failure, Note, Progress, StageJob, StageResult, dump_event
from specc.core.errors import Exit, SpeccError
from specc.core.files import FULL, digest_of, link_or_copy, sha256_file, storage_error, sync, write_atomic, writing

PR_SET_PDEATHSIG: Final = 1
POLL: Final = 0.05
"""Seconds between two looks at what other processes are making."""
StageFunction = Callable[["Stage"], None]
Tell = Callable[[float, str], None]
"""What a unit's writer tells how far it is: an amount, and a word on what it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of a stage's work that survives an interruption (a shard).

    `material` is all that decides its bytes besides the stage, its version and its facets; `name` is its path in the
    output, `amount` what it adds to the stage's progress. `write` puts it at a path, and says how far it is.
    """

    name: str
    material: Mapping[str, Any]
    amount: float
    write: Callable[[Path, Tell], None]


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

    @property
    def worker(self) -> bool:
        """Whether this process helps the stage's main one: it makes units and no artifact."""
        return "worker" in self.job.context

    @property
    def workers(self) -> int:
        """How many processes make the stage's units, this one among them."""
        return self.job.share[1]

    def units(self, units: Sequence[Unit], of: str) -> set[str]:
        """Make the units that are not there, with whoever else makes them, and put all of them in the output.

        A unit is shared whole and under its own key, so a killed stage goes on after the last one, and a stage of
        another key (more data, say) takes over those it shares. A worker's output gets none. `of` is what amounts
        count. Returns the names of those that were not there.
        """
        left = [(unit, stored) for unit in units if not _is_there(stored := self._stored(unit))]
        made, total = {unit.name for unit, _ in left}, sum(unit.amount for unit in units)
        # A worker counts what it makes itself, and the compiler adds all up.
        done, own = 0 if self.worker else total - sum(unit.amount for unit, _ in left), 0
        if left:
            self.progress(done, total, of)

        def tell(through: float, text: str = "") -> None:
            if not self.worker:
                self.progress(done + through, total, of, text)

        while left:
            busy: list[tuple[Unit, Path]] = []
            for unit, stored in left:
                with self._claims.claim(stored.stem) as ours:
                    if not ours:
                        busy.append((unit, stored))
                    elif not _is_there(stored):
                        self._make(unit, stored, tell)
                        done, own = done + unit.amount, own + 1
                        self.progress(done, total, of)
            if len(busy) == len(left):
                time.sleep(POLL)
            left = busy
        if self.workers > 1:
            self.record |= {"workers": self.workers, "own_units": own}
        if not self.worker:
            made |= self._assemble(units, tell)
            self.progress(total, total, of)
        return made

    def _assemble(self, units: Sequence[Unit], tell: Tell) -> set[str]:
        """Give every unit its name in the output; return those that were not what was sealed, and are made again."""
        again = set[str]()
        for unit in units:
            stored, target = self._stored(unit), self.output / unit.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() or _taken(stored, target):
                continue
            with self._claims.claim(stored.stem, wait=True):
                if not _taken(stored, target):
                    self._make(unit, stored, tell)
                    again.add(unit.name)
        return again

    def _make(self, unit: Unit, stored: Path, tell: Tell) -> None:
        target = self.output / unit.name
        target.parent.mkdir(parents=True, exist_ok=True)
        unit.write(target, tell)  # in the output, which goes as a whole when the stage is killed
        with writing(stored.parent):
            _share(target, stored)
            if self.worker:
                target.unlink()

    def _stored(self, unit: Unit) -> Path:
        key = digest_of({"stage": self.job.stage, "version": self.job.version, "facets": dict(self.facets),
                         "unit": dict(unit.material)})  # fmt: skip
        return Path(self.job.units) / key[:2] / f"{key}{Path(unit.name).suffix}"

    @cached_property
    def _claims(self) -> Claims:
        return Claims(Path(self.job.units) / "claims")


def _is_there(stored: Path) -> bool:
    """Tell whether somebody has finished a unit; `_taken` looks whether it still is what was sealed."""
    return stored.is_file() and _seal(stored).is_file()


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
        log(error)
        emit(_raised(error, Path(arguments[0]).parent))
        return Exit.STAGE
    return Exit.OK


def log(error: BaseException) -> None:
    """Write the traceback of what an engine raised into the stage's log.

    It is not for what a server said: an address may have a secret in it.
    """
    with suppress(OSError):  # the disk that is full may be the log's
        traceback.print_exception(error)


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
