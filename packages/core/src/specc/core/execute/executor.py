"""Run one stage: a process of its own, in an environment of its own, that holds its key's lock itself."""

from __future__ import annotations

import json
import math
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from specc.core.contracts import Event, Failure, Manifest, Note, Progress, StageJob, StageResult, load_event
from specc.core.errors import Exit, SpeccError
from specc.core.execute.environment import environment, free_port
from specc.core.execute.machine import require_isa
from specc.core.execute.processes import await_exit, await_group, has_exited, kill_group
from specc.core.execute.reporter import Reporter
from specc.core.files import disk_of, remove_tree, write_atomic, writing
from specc.core.store import Store

GRACE: Final = 5.0
"""Seconds that a stage has between SIGTERM and SIGKILL."""
POLL: Final = 0.2
LONGEST: Final = 1 << 20
"""Bytes of a line that may be an event; an engine that prints more of them without an end is no reason to hold them."""


def run_stage(
    job: StageJob,
    *,
    package: str,
    store: Store,
    reporter: Reporter,
    name: str,
    interpreter: str = sys.executable,
    again: bool = False,
) -> Manifest:
    """Run a stage and seal what it made; its artifact is named after the spec `name`.

    `job.output` is set here. If another process works on the same key, wait and take what it made. `again` runs the
    stage from its first row on, whatever is there. Raises `SpeccError` when the stage fails (exit code 3, or the
    failure's own) or its artifact differs from the one that the key gave before (exit code 4). An interrupt, and
    SIGTERM (as `SystemExit`, 143), stop the stage first.

    The kernel kills a stage when the thread that started it ends, so a stage is followed by that same thread.
    """
    started, date = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with terminable(), store.lock(job.key, lambda: reporter.waiting(job.stage)) as lock:
        found = store.find(job.stage, job.key)
        if found is not None and not again:
            manifest = store.manifest(found, job.key)
            reporter.stage_done(job.stage, manifest, time.monotonic() - started)
            return manifest
        require_isa(job.facets)
        output = store.begin(job.stage, job.key)
        reporter.stage_started(job.stage, job.key)
        try:
            work = store.work(job.stage, job.key)
            if again:
                with writing(store.root):
                    remove_tree(work)
                work = store.work(job.stage, job.key)
                job = replace(job, units=str(work / "units"))
            job = replace(job, output=str(output), work=str(work))
            record = _run(job, [interpreter, "-P", "-m", f"specc.{package}"], lock, store, reporter)
            manifest = store.seal(job, name, output, {**record, "started": date, "host": platform.node()})
        except BaseException:
            reporter.stage_stopped()
            with suppress(OSError):  # the error at hand says more
                remove_tree(output)
            raise
        with suppress(OSError):  # what is left of it is in nobody's way
            remove_tree(work)
        reporter.stage_done(job.stage, manifest, time.monotonic() - started)
        return manifest


def _run(job: StageJob, command: list[str], lock: int, store: Store, reporter: Reporter) -> dict[str, Any]:
    """Run a stage's process to its end and return its record."""
    work, log_path = Path(job.work), store.log(job.key)
    with writing(store.root):
        remove_tree(work / "tmp")
        for folder in ("home", "tmp"):
            (work / folder).mkdir(exist_ok=True)
        write_atomic(work / "JOB.json", job.dump())
        log = log_path.open("ab", buffering=0)
    with log, ExitStack() as held:
        sockets: str | None = None
        if "tensor_parallel" in job.facets:
            # Short, and not in the store: a socket's path may have 107 bytes.
            sockets = held.enter_context(tempfile.TemporaryDirectory(prefix="specc-", ignore_cleanup_errors=True))
        with writing(store.root):
            log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {job.stage} {job.key}\n".encode())
        try:
            process = subprocess.Popen(
                [*command, str(work / "JOB.json")],
                cwd=work,
                env=environment(
                    job.facets,
                    work,
                    free_port(),
                    hub=bool(job.context.get("hub")),
                    endpoint="endpoint" in job.context,
                    loggers=job.context.get("loggers", ()),
                    sockets=sockets,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(lock,),
                process_group=0,
            )
        except OSError as error:
            raise SpeccError(
                f"the interpreter `{command[0]}` cannot be started: {error.strerror}",
                hint="name the Python of an environment that specc is installed in",
                code=Exit.STAGE,
            ) from error
        try:
            end = _follow(process, log, reporter)
            await_exit(process.pid)
        except BaseException:
            kill_group(process.pid, signal.SIGTERM)
            await_exit(process.pid, GRACE)
            raise
        finally:
            # The stage is dead but not yet waited for, so that its number, and so its group's, is nobody else's.
            # Whatever it started and left must not write into an output that is being sealed.
            kill_group(process.pid, signal.SIGKILL)
            process.wait()
            await_group(process.pid)
    if isinstance(end, StageResult) and process.returncode == 0:
        return json.loads(json.dumps(end.record), parse_constant=lambda _: None)  # NaN is no JSON
    raise _failed(job, end, process.returncode, log_path)


def _follow(process: subprocess.Popen[bytes], log: BinaryIO, reporter: Reporter) -> StageResult | Failure | None:
    """Read a stage's events until its pipe closes or it ends; return the last word it said, if it said one."""
    end: StageResult | Failure | None = None
    pipe, rest = process.stdout, b""
    if pipe is None:
        raise AssertionError
    with pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(POLL):
                if has_exited(process.pid):  # and something it started still holds its pipe
                    return end
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return end
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST:
                lines, rest = [*lines, rest], b""
            for line in lines:
                match _event(line):
                    case Progress() as event:
                        reporter.progress(event)
                    case Note() as event:
                        reporter.note(event)
                    case StageResult() | Failure() as event:
                        end = event
                    case None:  # printed before the stage turned its output away from the pipe
                        with suppress(OSError):
                            log.write(line + b"\n")


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


def _failed(job: StageJob, end: StageResult | Failure | None, code: int, log: Path) -> SpeccError:
    """Return the error for a stage that did not end well: in its own words if it had any."""
    where = f"the whole log is {log}"
    if isinstance(end, Failure):
        known = end.code in set(Exit) and end.code != Exit.OK
        return SpeccError(
            end.message,
            where=end.where,
            note=f"in the stage `{job.stage}`",
            hint=f"{end.hint}; {where}" if end.hint else where,
            code=Exit(end.code) if known else Exit.STAGE,
        )
    if code < 0:
        what = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"was killed by {what}"
        if what == "SIGKILL":
            how += ", most likely because the machine ran out of memory"
            where = f"give it less per batch, or a machine with more memory; {where}"
        if what == "SIGBUS":  # a file that is mapped into memory has no other way to say so
            disk = disk_of(log)
            how += ", most likely because the disk is full"
            where = f"free some space on `{disk}` (`df -h {disk}`); {where}"
    else:
        how = f"ended with exit code {code}" + ("" if isinstance(end, StageResult) else " and no result")
    return SpeccError(f"the stage `{job.stage}` {how}", note=_last_line(log), hint=where, code=Exit.STAGE)


def _last_line(log: Path) -> str | None:
    """Return the last thing that an engine said in this run, often the error itself."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if said and not said.startswith("--- "):
            return said[:300]
    return None


@contextmanager
def terminable() -> Generator[None]:
    """Turn SIGTERM and SIGHUP into `SystemExit` (143, 129), so that a stage is stopped in good order.

    A signal that is ignored (`nohup`) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    caught = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
