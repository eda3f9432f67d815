"""Processes beside a stage's main one: workers that make units with it, or what makes its input while it runs.

They are started when the main process first says that there is work to do, and end with it. One that dies of a signal
is started again: what it had finished is whole, and what it was at is anybody's. One that fails in words, or dies again
and again before it has done anything, is the stage's failure.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from selectors import EVENT_READ, BaseSelector
from typing import Final

from specc.core.contracts import Note, Progress, StageJob, StageResult
from specc.core.execute.processes import signal_name
from specc.core.execute.running import Running
from specc.core.files import writing

DEATHS: Final = 3
"""How often one may die of a signal in a row, without having done anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendant:
    """What is to run beside a stage: its name, the package that runs it, and its job.

    Its work folder and its output, an empty one at each start, are below those of the stage.
    """

    name: str
    package: str
    job: StageJob


def workers(job: StageJob, package: str, count: int) -> tuple[StageJob, list[Attendant]]:
    """Return a job for the first of `count` processes that make its units, and the others as its attendants."""

    def one(number: int, **own: int) -> StageJob:
        return replace(job, context={**job.context, "share": (number, count), **own})

    beside = [Attendant(name=f"worker-{number}", package=package, job=one(number, worker=number))
              for number in range(1, count)]  # fmt: skip
    return one(0), beside


class Attendants:
    """The attendants of a running stage. Not one is there before `start`."""

    def __init__(self, attendants: Sequence[Attendant], main: Running, lock: int | None) -> None:
        self._main, self._lock = main, lock
        self._all = [_Place(attendant) for attendant in attendants]
        self._notes = set[str]()

    def start(self, selector: BaseSelector) -> None:
        """Start all that have not been started."""
        for place in self._all:
            if place.running is None and not place.starts:
                self._start(place, selector)

    def _start(self, place: _Place, selector: BaseSelector) -> None:
        attendant, main = place.attendant, self._main
        work = Path(main.job.work) / attendant.name
        output = work / "output"
        with writing(work.parent):
            shutil.rmtree(output, ignore_errors=True)  # of the one that died
            output.mkdir(parents=True)
        units = main.job.units if attendant.job.stage == main.job.stage else attendant.job.units
        job = replace(attendant.job, work=str(work), output=str(output), units=units)
        place.running = Running(job, attendant.package, main.path.with_suffix("") / f"{attendant.name}.log", self._lock)
        place.starts, place.over = place.starts + 1, False
        selector.register(place.running, EVENT_READ)

    def read(self, running: Running, selector: BaseSelector) -> Iterable[Note]:
        """Take in what one of them says, and return the notes that none has said before."""
        place = next(place for place in self._all if place.running is running)
        events = running.read()
        if events is None:
            selector.unregister(running)
        for event in events or ():
            if isinstance(event, Progress):
                place.deaths, place.said = 0 if event.done else place.deaths, event
            elif event.text not in self._notes:
                self._notes.add(event.text)
                yield event

    def tend(self, ready: Container[object], selector: BaseSelector, say: Callable[[Note], None]) -> Running | None:
        """Start again what has died; return the first that has failed, if one has. `ready` are those that said more."""
        for place in self._all:
            running = place.running
            if running is None or not running.exited:
                continue
            if not place.over or running in ready:  # what it said last is read first
                place.over = True
                continue
            with suppress(KeyError):
                selector.unregister(running)
            code, place.running = running.stop(), None
            if code == 0 and isinstance(running.end, StageResult):
                place.earn()
                continue
            if code >= 0 or running.end is not None or place.deaths == DEATHS:
                return running
            place.deaths += 1
            place.earn()
            text = f"`{place.attendant.name}` was killed by {signal_name(code)}, and is started again"
            say(Note(text=text, level="warning"))
            self._start(place, selector)
        return None

    def add(self, event: Progress) -> Progress:
        """Return the main process's progress with what the others have done of the same, never beyond its total."""
        done = event.done + sum(place.done(event.unit) for place in self._all)
        return replace(event, done=done if event.total is None else min(done, event.total))

    def ask(self) -> None:
        """Ask all to end."""
        for place in self._all:
            if place.running is not None:
                place.running.ask()

    def end(self, seconds: float) -> None:
        """Ask all to end, and end them after so many seconds."""
        self.ask()
        for place in self._all:
            if place.running is not None:
                place.running.wait(seconds)
                place.running.stop()
                place.running = None


class _Place:
    """An attendant's place: the process that has it now, and what those before it did."""

    def __init__(self, attendant: Attendant) -> None:
        self.attendant = attendant
        self.running: Running | None = None
        self.starts = self.deaths = 0
        self.over = False
        self.said: Progress | None = None
        self._before = 0.0

    def done(self, unit: str) -> float:
        """Return what was done here of what a main process counts in `unit`."""
        return self._before + (self.said.done if self.said and self.said.unit == unit else 0.0)

    def earn(self) -> None:
        """Keep what a process that is no more had done."""
        self._before += self.said.done if self.said else 0.0
        self.said = None
