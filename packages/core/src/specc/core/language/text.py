"""A text with its lines, places in it, and the way from a place to an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from specc.core.errors import Position, SpeccError

_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what libyaml takes for the end of a line


class Source:
    """A text with its name and its lines."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.lines = _BREAK.split(text)

    def line(self, number: int) -> str:
        """Return line `number`, counted from 0, fit to be printed: tabs and controls do not move the caret."""
        text = self.lines[number] if number < len(self.lines) else ""
        return "".join(letter if letter.isprintable() else " " if letter == "\t" else "\ufffd" for letter in text)


@dataclass(frozen=True, slots=True)
class Span:
    """A place on one line of a text; `line` and `column` count from 0, `length` is in characters."""

    source: Source
    line: int
    column: int
    length: int

    def position(self) -> Position:
        """Return the span as a position inside the text, whatever a parser said of its end."""
        lines = self.source.lines
        line = min(self.line, len(lines) - 1)
        width = len(lines[line])
        column = min(self.column, width) if line == self.line else width
        return Position(self.source.name, line + 1, column + 1, max(1, min(self.length, width - column)))

    def error(self, message: str, *, note: str | None = None, hint: str | None = None,
              id: str | None = None) -> SpeccError:  # noqa: A002 - as in SpeccError  # fmt: skip
        """Return an error at the span, with its line and a caret."""
        where = self.position()
        return SpeccError(message, where=where, excerpt=self.source.line(where.line - 1), note=note, hint=hint, id=id)


def printable(text: str, limit: int = 60) -> str:
    """Return user text as it may stand in a message: no control characters, cut at `limit` characters."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
