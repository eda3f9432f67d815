"""Where a training meets those that compute its hidden states: a folder of shards, and a file that says what is wanted.

    wanted.json              written by the training alone: shards, in the order in which it needs them
    00012.safetensors        a shard that is whole
    held/00012.safetensors   the states of a shard's held-out rows, which stay until the training is over
    claims                   a lock on a byte for each shard that somebody is at (`specc.core.claims`)

Nobody waits for an answer: the training looks for shards, and its producers for what is wanted and not there. So each
of them may die at any time and be started again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specc.core.files import pretty, write_atomic, writing


@dataclass(frozen=True, slots=True)
class Wanted:
    """Shards by their numbers: those that are to be there, and those of which the held-out rows are."""

    shards: Sequence[int] = ()
    held: Sequence[int] = ()


class Stream:
    """The folder of one training's stream."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shard(self, number: int) -> Path:
        """Return where a shard is, once it is whole."""
        return self.folder / f"{number:05d}.safetensors"

    def held(self, number: int) -> Path:
        """Return where the held-out rows of a shard are, once they are whole."""
        return self.folder / "held" / f"{number:05d}.safetensors"

    def wanted(self) -> Wanted:
        """Return what the training wants, nothing before it has said so."""
        try:
            return Wanted(**json.loads((self.folder / "wanted.json").read_bytes()))
        except FileNotFoundError:
            return Wanted()

    def want(self, wanted: Wanted) -> None:
        """Say what is to be there; shards that are not among it are removed.

        At no time are there more than `wanted` has: nobody begins a new one before the old ones are gone.
        """
        numbers = set(wanted.shards)
        stay = Wanted([number for number in self.wanted().shards if number in numbers], wanted.held)
        with writing(self.folder.parent):
            (self.folder / "held").mkdir(parents=True, exist_ok=True)
            self._write(stay)
            for path in self.folder.glob("*.safetensors"):
                if int(path.stem) not in numbers:
                    path.unlink()
            self._write(wanted)

    def _write(self, wanted: Wanted) -> None:
        write_atomic(self.folder / "wanted.json", pretty({"shards": list(wanted.shards), "held": list(wanted.held)}))
