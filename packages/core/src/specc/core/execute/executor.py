"""Run one stage: in processes of its own, in an environment made for them, which hold its key's lock themselves."""

from __future__ import annotations

import json
import platform
import selectors
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

from specc.core.contracts import Failure, Manifest, Note, Progress, StageJob, StageResult
from specc.core.errors import Exit, SpeccError
from specc.core.execute.attendants import Attendant, Attendants
from specc.core.execute.machine import require_isa
from specc.core.execute.processes import signal_name
from specc.core.execute.reporter import Reporter
from specc.core.execute.running import Running
from specc.core.files import disk_of, remove_tree, writing
from specc.core.store import Store

GRACE: Final = 5.0
"""Seconds that a stage has between SIGTERM and SIGKILL."""
POLL: Final = 0.2


def run_stage(
    job: StageJob,
    *,
    package: str,
    store: Store,
    reporter: Reporter,
    name: str,
    interpreter: str = sys.executable,
    again: bool = False,
    attendants: Sequence[Attendant] = (),
) -> Manifest:
    """Run a stage and seal what it made; its artifact is named after the spec `name`.

    `job.output` is set here. If another process works on the same key, wait and take what it made. `again` runs the
    stage from its first row on, whatever is there. `attendants` run beside it. Raises `SpeccError` when the stage
    fails (exit code 3, or the failure's own) or its artifact differs from the one that the key gave before (exit code
    4). An interrupt, and SIGTERM (as `SystemExit`, 143), stop the stage first.
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
            record = _run(job, package, interpreter, attendants, lock=lock, store=store, reporter=reporter)
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


def run_worker(job: StageJob, *, package: str, store: Store, reporter: Reporter, name: str) -> None:
    """Make units of a stage that is built elsewhere, on another machine perhaps, until all of them are there.

    Nothing is sealed, and the key's lock is the other's. `name` is the worker's own. Raises `SpeccError` as `run_stage`
    does.
    """
    work = store.work(job.stage, job.key) / name
    with terminable():
        reporter.stage_started(job.stage, job.key, "as a worker")
        try:
            with writing(store.root):
                remove_tree(work)
                (work / "output").mkdir(parents=True)
            job = replace(job, output=str(work / "output"), work=str(work), context={**job.context, "worker": name})
            log = store.log(job.key).with_suffix("") / f"{name}.log"
            main = Running(job, package, log, None)
            _attend(main, Attendants([], main, None), reporter)
        finally:
            reporter.stage_stopped()
            with suppress(OSError):  # whoever builds the stage may have removed it
                remove_tree(work)


def _run(
    job: StageJob,
    package: str,
    interpreter: str,
    attendants: Sequence[Attendant],
    *,
    lock: int,
    store: Store,
    reporter: Reporter,
) -> dict[str, Any]:
    """Run a stage's processes to their end and return the main one's record."""
    with writing(store.root):
        main = Running(job, package, store.log(job.key), lock, interpreter)
    return _attend(main, Attendants(attendants, main, lock), reporter)


def _attend(main: Running, beside: Attendants, reporter: Reporter) -> dict[str, Any]:
    """Follow a stage's processes to their end and return the main one's record."""
    try:
        failed = _follow(main, beside, reporter)
        if failed is None:
            main.wait()
    except BaseException:
        main.ask()
        beside.ask()
        main.wait(GRACE)
        raise
    finally:
        code = main.stop()
        beside.end(GRACE)
    if failed is not None:
        raise _failed(failed.job, failed.end, failed.process.returncode, failed.path)
    if isinstance(main.end, StageResult) and code == 0:
        return json.loads(json.dumps(main.end.record), parse_constant=lambda _: None)  # NaN is no JSON
    raise _failed(main.job, main.end, code, main.path)


def _follow(main: Running, beside: Attendants, reporter: Reporter) -> Running | None:
    """Read a stage's events until its main process has no more to say; return an attendant that failed, if one did."""
    last: Progress | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(main, selectors.EVENT_READ)
        while True:
            exited = main.exited
            ready = [key.fileobj for key, _ in selector.select(0 if exited else POLL)]
            if main in ready:
                events = main.read()
                if events is None:
                    return None
                for event in events:
                    if isinstance(event, Note):
                        reporter.note(event)
                        continue
                    last = event
                    reporter.progress(beside.add(event))
                    if event.total is None or event.done < event.total:
                        beside.start(selector)
            elif exited:  # and something it started still holds its pipe
                return None
            for other in ready:
                if isinstance(other, Running) and other is not main:
                    for note in beside.read(other, selector):
                        reporter.note(note)
                    if last is not None:
                        reporter.progress(beside.add(last))
            if (failed := beside.tend(ready, selector, reporter.note)) is not None:
                return failed


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
        what = signal_name(code)
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
