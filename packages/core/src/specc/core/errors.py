"""The one family of errors that a user may see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line, each with one meaning."""

    OK = 0
    INPUT = 1
    """The user's input is wrong: spec, stale lock, unmet check."""
    USAGE = 2
    STAGE = 3
    """A stage failed."""
    DIFFERENCE = 4
    """Verification found a difference."""
    WORK = 5
    """`--detailed-exitcode` was given and there is work to do."""
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text file; `line` and `column` count from 1, `length` is in characters."""

    file: str
    line: int
    column: int
    length: int = 1

    def __str__(self) -> str:
        """`file:line:column`, as editors and terminals link it."""
        return f"{self.file}:{self.line}:{self.column}"


class SpeccError(Exception):
    """What went wrong, where, and what to type next.

    `message` is one sentence without a full stop, literals in backticks. `where` is a position in the user's
    file or a path. `hint` says what to do. `excerpt` is the line at `where`, if it is known.
    """

    def __init__(
        self,
        message: str,
        *,
        where: Position | str | None = None,
        hint: str | None = None,
        note: str | None = None,
        excerpt: str | None = None,
        code: Exit = Exit.INPUT,
        id: str | None = None,  # noqa: A002 - the name a reader of `specc explain ID` knows
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        self.note = note
        self.excerpt = excerpt
        self.code = code
        self.id = id

    @property
    def errors(self) -> list[SpeccError]:
        """All that went wrong: this error alone, unless it stands for several."""
        return [self]

    def render(self) -> str:
        """Return the whole error as it is printed, without colour.

        `note` stands after the caret (`did you mean ...?`), `hint` after a blank line.
        """
        prefix = f"{self.where}: " if self.where is not None else ""
        lines = [f"error: {prefix}{self.message}"]
        if isinstance(self.where, Position) and self.excerpt is not None:
            gutter = f"  {self.where.line} | "
            lines.append(gutter + self.excerpt)
            pad = " " * (len(gutter) - 2) + "| "
            note = f" {self.note}" if self.note else ""
            lines.append(pad + " " * (self.where.column - 1) + "^" * max(1, self.where.length) + note)
        elif self.note:
            lines.append(f"  {self.note}")
        if self.hint:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """Return the error as plain data for `--json`."""
        where: object = self.where
        if isinstance(self.where, Position):
            where = {"file": self.where.file, "line": self.where.line, "column": self.where.column,
                     "length": self.where.length}  # fmt: skip
        found = {"id": self.id, "message": self.message, "where": where, "note": self.note, "hint": self.hint}
        return {key: value for key, value in found.items() if value is not None}


class SpeccErrors(SpeccError):  # noqa: N818 - several of them
    """Several errors at once, in the order of the file."""

    def __init__(self, errors: list[SpeccError]) -> None:
        first = errors[0]
        super().__init__(first.message, where=first.where, code=max(error.code for error in errors))
        self._errors = errors

    @property
    def errors(self) -> list[SpeccError]:
        """All of them."""
        return self._errors

    def render(self) -> str:
        """Return all errors, one after another."""
        return "\n".join(error.render() for error in self.errors)
