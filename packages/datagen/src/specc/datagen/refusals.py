"""The rows that a server refuses to answer, kept by shard, so that a build that goes on still knows of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from specc.core.errors import Exit
from specc.core.files import write_atomic
from specc.core.stage import Stage
from specc.datagen.allowance import Allowance, LeftOut

REFUSED: Final = "refused_rows.jsonl"
"""The file of the artifact that lists them."""
FIELD: Final = "data.responses.endpoint.refused"
HINT: Final = (
    "what was answered is kept, and the same command goes on behind it: look at the server's log, or raise `timeout` or"
    " `refused`"
)


class Refusals:
    """The refused rows of all shards of a stage, and how many there may be of `total` rows."""

    def __init__(self, stage: Stage, total: int) -> None:
        """Read what earlier runs of the stage kept."""
        self._allowed: float = stage.job.context["endpoint"]["refused"]
        self._total = total
        self._folder = stage.work / "refused"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._shards = {int(path.stem): [LeftOut(*row) for row in json.loads(path.read_bytes())]
                        for path in sorted(self._folder.glob("*.json"))}  # fmt: skip
        self._shard = -1

    def begin(self, shard: int) -> None:
        """Forget a shard's rows: all of those that are not answered are asked again. A shard is its first row."""
        self._shard = shard
        self._shards.pop(shard, None)
        self._file(shard).unlink(missing_ok=True)

    def add(self, row: LeftOut) -> None:
        """Keep a row of the shard that was begun; raises `SpeccError` if there are more than there may be.

        A conversation of which a later turn is refused ends before it, and is such a row too.
        """
        rows = self._shards.setdefault(self._shard, [])
        rows.append(row)
        found = self.every()
        if found.exceeded(self._total):
            raise found.error(str(self._total), Exit.STAGE)
        # The server's own words may say where it is, and an artifact never does.
        kept = [(row.file, row.line, row.reason.partition(": ")[0]) for row in rows]
        write_atomic(self._file(self._shard), json.dumps(kept, ensure_ascii=False))

    def _file(self, shard: int) -> Path:
        return self._folder / f"{shard:012d}.json"

    def every(self) -> Allowance:
        """Return the rows of all shards, in their order."""
        found = Allowance(FIELD, self._allowed, "are refused by the server", HINT)
        for shard in sorted(self._shards):
            for row in self._shards[shard]:
                found.add(row)
        return found
