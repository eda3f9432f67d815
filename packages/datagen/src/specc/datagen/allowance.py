"""Rows that cannot be used: how many a spec allows, which they were, and what is said of them.

`data.bad_rows` and `data.responses.endpoint.refused` are such limits. Up to the limit rows are left out, counted and
listed in the artifact; past it the stage fails, and its error lists the first ones of all files together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from specc.core.errors import Exit, SpeccError

SHOWN: Final = 10
"""Rows that an error lists; the others are counted."""
LISTED: Final = 1000
"""Rows that an artifact lists; the others are counted."""


class LeftOut(NamedTuple):
    """A row that is left out: where it was read, and why it cannot be used."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class Allowance:
    """How many rows may be left out (`allowed`: a share of all below 1, else a number), and those that are.

    `path` is that of the spec's field that says so, and `cannot` what is wrong with such rows: `cannot be used`.
    """

    path: str
    allowed: float
    cannot: str
    hint: str
    count: int = 0
    rows: list[LeftOut] = field(default_factory=list[LeftOut])

    def add(self, row: LeftOut) -> None:
        """Count a row, and remember it if it is among the first."""
        self.count += 1
        if len(self.rows) < LISTED:
            self.rows.append(row)

    def exceeded(self, total: int) -> bool:
        """Tell whether more rows are left out than may be of `total`."""
        return self.count > (self.allowed if self.allowed >= 1 else self.allowed * total)

    def hopeless(self) -> bool:
        """Tell whether there are very many, and too many of them whatever is still read: the rest will be no better."""
        return self.count > max(self.allowed, LISTED) and not 0 < self.allowed < 1

    def error(self, total: str, code: Exit = Exit.INPUT) -> SpeccError:
        """Return the error that lists the first rows; `total` says of how many they are: `40`, `the first 40`."""
        shown = "".join(f"\n  {row.file}:{row.line}: {row.reason}" for row in self.rows[:SHOWN])
        more = f"\n  and {self.count - SHOWN} more" if self.count > SHOWN else ""
        rows = "1 row" if self.count == 1 else f"{self.count} rows"
        allowed = f", and `{self.path}` allows {self.allowed:g}" if self.allowed else ""
        return SpeccError(f"{rows} of {total} {self.cannot}{allowed}{shown}{more}", hint=self.hint, code=code)

    def warning(self, total: int, file: str, what: str = "were left out") -> str:
        """Return what is said of such rows, and of `what` was done with them, which `file` of the artifact lists."""
        them = "them" if self.count <= LISTED else f"the first {LISTED}"
        return f"{self.count} of {total} rows {self.cannot} and {what}: `{file}` of the artifact lists {them}"

    def write(self, file: Path) -> None:
        """Write the list: a line of JSON a row, with its `file`, `line` and `reason`."""
        lines = (json.dumps(row._asdict(), ensure_ascii=False, sort_keys=True) for row in self.rows)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="replace")
