"""What was answered so far of a shard: a line an answer, in the order in which they came.

A killed run goes on behind the last whole line. The shard itself has its rows in their own order.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from specc.datagen.rows import Message, canonical_text

SYNC_EVERY: Final = 32
"""Answers after which the disk is waited for; a process that is killed loses none of those that it wrote."""


class Journal:
    """The answers of one shard, kept as they come; `Journal.open` reads what an earlier run kept."""

    def __init__(self, path: Path) -> None:
        """Read a journal, and cut off what is no whole line of it."""
        self._answers: dict[tuple[int, int], Message] = {}
        self._new = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        whole = 0
        for line in self._file.read().splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):
                    found = json.loads(line)
                    self._answers[found["row"], found["turn"]] = found["message"]
                    whole += len(line)
                    continue
            break
        self._file.truncate(whole)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, row: int, turn: int) -> Message | None:
        """Return the answer that is a conversation's `turn`, if it is there."""
        return self._answers.get((row, turn))

    def add(self, row: int, turn: int, message: Message) -> None:
        """Keep an answer."""
        line = b'{"message":%s,"row":%d,"turn":%d}\n' % (canonical_text([message])[1:-1], row, turn)
        self._file.write(line)
        self._answers[row, turn] = message
        self._new += 1
        if self._new % SYNC_EVERY == 0:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Wait for the disk, and close the file."""
        if self._new:
            os.fsync(self._file.fileno())
        self._file.close()
