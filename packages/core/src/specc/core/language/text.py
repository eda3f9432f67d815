"""A text with its lines, places in it, and the way from a place to an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from specc.core.errors import Position, SpeccError

_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what libyaml takes for the end of a line


@dataclass(frozen=True, slots=True)
class Span:
    """A place on one line of the text; `line` and `column` count from 0, `length` is in characters."""

    line: int
    column: int
    length: int


class Source:
    """A text with its name and its lines, and the way to an error inside it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.lines = _BREAK.split(text)

    def line(self, number: int) -> str:
        """Return line `number`, counted from 0, fit to be printed: tabs and controls do not move the caret."""
        text = self.lines[number] if number < len(self.lines) else ""
        return "".join(letter if letter.isprintable() else " " if letter == "\t" else "\ufffd" for letter in text)

    def position(self, span: Span) -> Position:
        """Return a span as a position inside the text, whatever a parser said of its end."""
        line = min(span.line, len(self.lines) - 1)
        width = len(self.lines[line])
        column = min(span.column, width) if line == span.line else width
        return Position(self.name, line + 1, column + 1, max(1, min(span.length, width - column)))

    def error(self, message: str, span: Span, *, note: str | None = None, hint: str | None = None,
              id: str | None = None) -> SpeccError:  # noqa: A002 - as in SpeccError  # fmt: skip
        """Return an error at a span, with the line and a caret."""
        where = self.position(span)
        return SpeccError(message, where=where, excerpt=self.line(where.line - 1), note=note, hint=hint, id=id)


def printable(text: str, limit: int = 60) -> str:
    """Return user text as it may stand in a message: no control characters, cut at `limit` characters."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
