"""Where the hidden states of a corpus are read from: whatever has these few methods will do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
import zstandard
from safetensors import safe_open
from torch import Tensor

from specc.core.errors import Exit, SpeccError

ENCODING: Final = "exponents-zstd"
"""What `index.json` calls the one way in which hidden states are written."""
WORDS: Final = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, slots=True)
class Document:
    """A row of the corpus that has something to learn.

    It is the row `place` of its shard, whose tokens from `start` on are its `tokens`; `rows` are the draft's rows up to
    its last target: later ones would be seen by no counted query. `row` is its number in `conversations`.
    """

    shard: int
    place: int
    start: int
    tokens: int
    rows: int
    row: int


class States(Protocol):
    """The hidden states of a corpus' documents."""

    def read(self, document: Document, tokens: int) -> Tensor:
        """Return a document's first `tokens`, `[tokens, layers, hidden]` in the verifier's dtype, the last layer last.

        From its last target on, `rows + 1` tokens behind its start, they are zeros: no counted row sees them. Waits
        until they are there. Raises `SpeccError` if they never will be. May be called by several threads.
        """
        ...

    def window_done(self) -> None:
        """Take note that the epoch reads nothing more of the window at hand, save the documents that are held out."""
        ...


class OnDisk:
    """The artifact `hidden_states`, read document by document through the page cache.

    A shard is mapped only as long as one of its documents is read: mapped pages count as memory of the process.
    """

    def __init__(self, folder: Path, tokens: Path, layers: Sequence[int]) -> None:
        """Open the states of the artifact `tokens`; `layers` are to be read, in this order.

        Raises `SpeccError` if they are of other tokens or other layers.
        """
        index, states = (json.loads((one / "index.json").read_text()) for one in (tokens, folder))
        if states.get("encoding") != ENCODING:
            raise SpeccError(f"the hidden states are encoded as {states.get('encoding')} and not as {ENCODING}",
                             where=str(folder), hint="build them again: `specc build`", code=Exit.STAGE)  # fmt: skip
        if missing := [layer for layer in layers if layer not in states["layers"]]:
            raise SpeccError(f"the hidden states have layers {states['layers']} and no layer {missing[0]}",
                             where=str(folder), code=Exit.STAGE)  # fmt: skip
        expected = [shard["sha256"] for shard in index["shards"]]
        if expected != [shard["tokens_sha256"] for shard in states["shards"]]:
            raise SpeccError("the hidden states were made from other tokens", where=str(folder),
                             hint="build both again from one plan: `specc build`", code=Exit.STAGE)  # fmt: skip
        self._shards = [folder / shard["file"] for shard in states["shards"]]
        self._format = Format.of(states, layers)

    def read(self, document: Document, tokens: int) -> Tensor:
        """Return a document's first `tokens`, `[tokens, layers, hidden]` in the verifier's dtype."""
        with safe_open(self._shards[document.shard], framework="pt") as shard:
            return self._format.read(shard, document.place, tokens)

    def window_done(self) -> None:
        """Do nothing: what is not read for long leaves the page cache by itself."""


@dataclass(frozen=True, slots=True)
class Format:
    """How shards of hidden states are read: as `specc.datagen.encoding` writes them.

    `columns` are the places of the layers that are read among those that are there; `hidden` is the size of a state.
    """

    columns: Sequence[int]
    hidden: int
    dtype: torch.dtype

    @classmethod
    def of(cls, index: Mapping[str, Any], layers: Sequence[int]) -> Format:
        """Return the format that an artifact's `index.json` tells of, to read `layers`."""
        columns = [index["layers"].index(layer) for layer in layers]
        return cls(columns, index["hidden_size"], getattr(torch, index["dtype"]))

    def read(self, shard: Any, row: int, tokens: int) -> Tensor:
        """Return the first `tokens` of a row of an open shard, `[tokens, layers, hidden]`, zeros where none are kept.

        Raises if the blocks have other sizes than the tokens kept ask for.
        """
        rows, borders = shard.get_slice("tokens"), shard.get_slice("offsets")
        kept, layers = int(rows[row]), (borders.get_shape()[0] - 1) // rows.get_shape()[0]
        count, width = min(kept, tokens), self.dtype.itemsize
        states = torch.empty(tokens, len(self.columns), self.hidden, dtype=self.dtype)
        states.view(WORDS[width]).numpy()[count:] = 0
        if not count:
            return states
        offsets = borders[row * layers : (row + 1) * layers + 1].tolist()
        blocks = shard.get_slice("blocks")[offsets[0] : offsets[-1]].numpy()
        numbers = states.view(WORDS[width]).numpy()[:count]  # [count, layers, hidden]
        planes = numbers.view(np.uint8).reshape(*numbers.shape, width)
        size, coder = kept * self.hidden, zstandard.ZstdDecompressor()
        for place, column in enumerate(self.columns):
            block = blocks[offsets[column] - offsets[0] : offsets[column + 1] - offsets[0]]
            low, frame = np.split(block, [size * (width - 1)])
            high = np.frombuffer(coder.decompress(frame.data), np.uint8)
            for byte, plane in enumerate((*low.reshape(width - 1, size), high)):
                planes[:, place, :, byte] = plane.reshape(kept, self.hidden)[:count]
        unsigned = numbers.view(f"<u{width}")
        sign = unsigned << (8 * width - 1)
        unsigned >>= 1
        unsigned |= sign
        return states
