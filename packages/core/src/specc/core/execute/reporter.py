"""What a user sees while stages run: one live line on a terminal, plain lines elsewhere, all on standard error."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

from specc.core.contracts import Manifest, Note, Progress

REDRAW: Final = 0.1
"""Seconds between two pictures of the live line."""
QUIET: Final = 10.0
"""Seconds without a plain line after which the next progress is worth one, whatever it is."""
BAR: Final = 24
_COLOURS: Final = {"green": 32, "yellow": 33, "cyan": 36}


class Reporter:
    """Shows one stage at a time.

    `terminal` and `colour` are found from the stream and the environment (`TERM`, `NO_COLOR`) unless they are given;
    `width` and `clock` are for tests.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        terminal: bool | None = None,
        colour: bool | None = None,
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        alive = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._terminal = alive if terminal is None else terminal
        self._colour = (self._terminal and not os.environ.get("NO_COLOR")) if colour is None else colour
        self._width = width
        self._clock = clock
        self._ascii = (getattr(self._stream, "encoding", None) or "ascii").lower().replace("-", "") != "utf8"
        self._stage = ""
        self._pace = _Pace(self._clock())
        self._said_at = self._drawn_at = float("-inf")
        self._said_tenth = 0
        self._line = ""

    def stage_started(self, stage: str, key: str, note: str = "") -> None:
        """Say that a stage starts; `note` says on what ground if that is not plain."""
        self._stage, self._pace = stage, _Pace(self._clock())
        self._said_at, self._said_tenth, self._drawn_at = self._clock(), 0, float("-inf")
        if self._terminal:
            self._draw((f"{stage:<14} starting" + (f"  {note}" if note else ""))[: self._room()])
        else:
            self._say(f"{stage}: started (key {key[:8]}{', ' + note if note else ''})")

    def progress(self, event: Progress) -> None:
        """Show how far the stage is, at most ten times a second or about every ten seconds."""
        now = self._clock()
        self._pace.add(event, now)
        if self._terminal:
            if now - self._drawn_at >= REDRAW:
                self._drawn_at = now
                self._draw(self._live(event))
            return
        tenth = int(10 * _share(event))
        if now - self._said_at >= QUIET or (tenth > self._said_tenth and now - self._said_at >= 1):
            self._said_at, self._said_tenth = now, tenth
            percent = f"{100 * _share(event):.0f} %, " if event.total else ""
            rest = [self._pace.words(event), _clean(event.text)]
            self._say(f"{self._stage}: {percent}{_counted(event)}" + "".join(f", {word}" for word in rest if word))

    def note(self, event: Note) -> None:
        """Say a stage's sentence, above the live line."""
        word = self._paint("warning: ", "yellow") if event.level == "warning" else ""
        self._above(f"{self._stage}: {word}{_clean(event.text)}")

    def waiting(self, stage: str) -> None:
        """Say that another process builds this stage now."""
        self._above(f"{stage}: another process is building it, waiting for that")

    def stage_done(self, stage: str, manifest: Manifest, seconds: float) -> None:
        """Say what a stage gave and how long it took."""
        what = f"sha256:{manifest.digest[:12]}, {_size(manifest.size)}, {_duration(seconds)}"
        mark = "" if not self._terminal else self._paint("+ " if self._ascii else "✓ ", "green")
        self._draw("")
        self._say(f"{mark}{stage}: {what}")

    def stage_stopped(self) -> None:
        """Take the live line away: the stage failed or was interrupted, and someone else says so."""
        self._draw("")

    def _live(self, event: Progress) -> str:
        """Return the live line: as many of its parts as the terminal has room for, the last ones go first."""
        share = _share(event)
        full, empty = ("#", "-") if self._ascii else ("━", "╌")
        filled = round(BAR * share)
        parts = [f"{self._stage:<14}"]
        if event.total:
            parts += [f"{100 * share:3.0f} %", full * filled + empty * (BAR - filled)]
        parts += [_counted(event), *filter(None, (self._pace.words(event), _clean(event.text)))]
        while len(parts) > 1 and len("  ".join(parts)) > self._room():
            parts.pop()
        if len(parts) > 2 and event.total:
            parts[2] = self._paint(parts[2], "cyan")
            return "  ".join(parts)
        return "  ".join(parts)[: self._room()]

    def _room(self) -> int:
        return max(0, self._width() - 1)  # a full last column would wrap

    def _above(self, text: str) -> None:
        line = self._line
        self._draw("")
        self._say(text)
        self._draw(line)

    def _draw(self, line: str) -> None:
        if self._terminal and (line or self._line):
            self._write("\r\x1b[2K" + line)
            self._line = line

    def _say(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        with suppress(
            OSError
        ):  # that nobody can read it (a closed pipe or terminal, a full disk) must not stop a build
            self._stream.write(text.encode("ascii", "replace").decode() if self._ascii else text)
            self._stream.flush()

    def _paint(self, text: str, name: str) -> str:
        return f"\x1b[{_COLOURS[name]}m{text}\x1b[0m" if self._colour else text


class _Pace:
    """The rate of the work at hand, from where it begins: the start of an engine, and what was there, took no time."""

    def __init__(self, now: float) -> None:
        self._unit: str | None = None
        self._since, self._from = now, 0.0
        self._rate = 0.0

    def add(self, event: Progress, now: float) -> None:
        if event.unit != self._unit or event.done <= self._from:
            self._unit, self._since, self._from, self._rate = event.unit, now, event.done, 0.0
        elif now - self._since >= 1:
            self._rate = (event.done - self._from) / (now - self._since)

    def words(self, event: Progress) -> str:
        """Return `3.2 steps/s, 2:41 left`, empty while nothing is known."""
        if self._rate <= 0:
            return ""
        digits = 0 if self._rate >= 100 else 1 if self._rate >= 1 else 2
        rate = f"{self._rate:.{digits}f} {event.unit}/s"
        left = (event.total - event.done) / self._rate if event.total and event.total > event.done else None
        return rate if left is None else f"{rate}, {_duration(left)} left"


def _clean(text: str) -> str:
    """Return one line that moves no cursor, whatever an engine wrote."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _share(event: Progress) -> float:
    return min(1.0, max(0.0, event.done / event.total)) if event.total else 0.0


def _counted(event: Progress) -> str:
    if event.unit == "bytes":
        return f"{_size(event.done)}/{_size(event.total)}" if event.total else _size(event.done)
    total = f"/{event.total:,.10g}" if event.total else ""
    return f"{event.done:,.10g}{total} {event.unit}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
