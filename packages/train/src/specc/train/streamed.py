"""Hidden states that are computed while the draft trains, a bounded number of shards at a time.

The training knows its order before it begins (`specc.train.order`) and says what it needs next; whoever computes it
(`specc.datagen.produced`) puts it there. Rank 0 alone says so: the shards of a window are dropped after its last step,
whose sums no rank comes out of before all have read their part.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from specc.core.files import pretty, write_atomic
from specc.core.streams import Stream, Wanted
from specc.train.states import ENCODING, Document, OnDisk

POLL: Final = 0.02
"""Seconds between two looks for a shard."""


class Streamed:
    """The hidden states of a corpus, of which only what is needed next is there."""

    def __init__(self, folder: Path, tokens: Path, about: Mapping[str, Any], how: Mapping[str, Any]) -> None:
        """Take the folder of a stream over the artifact `tokens`.

        `about` is what an artifact's `index.json` says of its format: `layers`, to be read in this order, `hidden_size`
        and `dtype`. `how` has `ahead`, the number of shards that may be there beside those of the window at hand, and
        `keep`, whether all that were computed stay.
        """
        self._stream, self._ahead, self._keep = Stream(folder), how["ahead"], how["keep"]
        self._first = os.environ["RANK"] == "0"
        shards = json.loads((tokens / "index.json").read_text())["shards"]
        files = [self._stream.shard(number).name for number in range(len(shards))]
        told = [{"file": file, "tokens_sha256": shard["sha256"]} for file, shard in zip(files, shards, strict=True)]
        for part in (folder, folder / "held"):  # by every rank, the same
            part.mkdir(parents=True, exist_ok=True)
            write_atomic(part / "index.json", pretty({"encoding": ENCODING, **about, "shards": told}))
        layers: Sequence[int] = about["layers"]
        self._whole, self._held = (OnDisk(part, tokens, layers) for part in (folder, folder / "held"))
        self._source: Iterator[Sequence[int]] = iter(())
        self._shards = 0
        self._windows = deque[Sequence[int]]()
        self._held_out = dict[int, set[int]]()
        self.waited = 0.0
        """Seconds that reading has waited."""

    def expect(self, windows: Iterable[Sequence[int]], shards: int, held: Sequence[Document]) -> None:
        """Say which shards the windows to come have, the one at hand first, and which documents are held out.

        An epoch's windows have so many `shards` together.
        """
        self._source, self._shards = iter(windows), shards
        for document in held:
            self._held_out.setdefault(document.shard, set()).add(document.start)
        self._say()

    def read(self, document: Document, tokens: int) -> Tensor:
        """Return a document's first `tokens`, `[tokens, layers, hidden]` in the verifier's dtype; waits for them."""
        shard = document.shard
        if document.start not in self._held_out.get(shard, ()):
            self._wait(self._stream.shard(shard))
            return self._whole.read(document, tokens)
        path = self._stream.held(shard)
        if not path.exists():  # of a shard that no window had yet
            self._say([number for number in sorted(self._held_out) if not self._stream.held(number).exists()])
            self._wait(path)
        return self._held.read(document, tokens)

    def window_done(self) -> None:
        """Drop the window at hand; what is held out of it was put aside with it."""
        if self._first:
            self._windows.popleft()
            self._say()

    def _say(self, held: Sequence[int] = ()) -> None:
        """Say what is wanted: the shards of the window at hand and some behind it, or all that are still to come."""
        if self._first:
            self._stream.want(Wanted(self._upcoming(), held))

    def _upcoming(self) -> list[int]:
        found, most = dict[int, None](), self._shards
        for number in count():
            if number == len(self._windows):
                if (window := next(self._source, None)) is None:
                    break
                self._windows.append(window)
            if not number and not self._keep:
                most = min(most, len(self._windows[0]) + self._ahead)
            for shard in self._windows[number]:
                if len(found) == most:
                    return list(found)
                found[shard] = None
        return list(found)

    def _wait(self, path: Path) -> None:
        """Wait until a file is there; a producer that fails ends the stage, and with it this."""
        since = time.monotonic()
        while not path.exists():
            time.sleep(POLL)
        self.waited += time.monotonic() - since
