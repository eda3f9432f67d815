"""Where the hidden states of a corpus are read from: whatever has these few methods will do."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from safetensors import safe_open
from torch import Tensor

from specc.core.errors import Exit, SpeccError

OPEN_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class Document:
    """A row of the corpus that has something to learn.

    `start` and `tokens` place it in its shard; `rows` are the draft's rows up to its last target: later ones
    would be seen by no counted query. `row` is its number in `conversations`.
    """

    shard: int
    start: int
    tokens: int
    rows: int
    row: int


class States(Protocol):
    """The hidden states of a corpus' documents."""

    def read(self, document: Document, tokens: int) -> Tensor:
        """Return a document's first `tokens`, `[tokens, layers, hidden]` in the verifier's dtype, the last layer last.

        Waits until they are there. Raises `SpeccError` if they never will be. May be called by several threads.
        """
        ...

    def done(self, shards: Sequence[int], keep: Sequence[Document]) -> None:
        """Take note that the epoch reads nothing more of some shards, save the documents `keep`."""
        ...


class OnDisk:
    """The artifact `hidden_states`, read through the page cache."""

    def __init__(self, folder: Path, tokens: Path, layers: Sequence[int]) -> None:
        """Open the states of the artifact `tokens`; `layers` are to be read, in this order.

        Raises `SpeccError` if they are of other tokens or other layers.
        """
        index, states = (json.loads((one / "index.json").read_text()) for one in (tokens, folder))
        if missing := [layer for layer in layers if layer not in states["layers"]]:
            raise SpeccError(f"the hidden states have layers {states['layers']} and no layer {missing[0]}",
                             where=str(folder), code=Exit.STAGE)  # fmt: skip
        expected = [shard["sha256"] for shard in index["shards"]]
        if expected != [shard["tokens_sha256"] for shard in states["shards"]]:
            raise SpeccError("the hidden states were made from other tokens", where=str(folder),
                             hint="build both again from one plan: `specc build`", code=Exit.STAGE)  # fmt: skip
        self._files = OpenFiles()
        self._shards = [folder / shard["file"] for shard in states["shards"]]
        self._layers = [states["layers"].index(layer) for layer in layers]

    def read(self, document: Document, tokens: int) -> Tensor:
        """Return a document's first `tokens`, `[tokens, layers, hidden]` in the verifier's dtype."""
        states = self._files[self._shards[document.shard]].get_slice("hidden_states")
        return states[document.start : document.start + tokens][:, self._layers]

    def done(self, shards: Sequence[int], keep: Sequence[Document]) -> None:
        """Do nothing: what is not read for long leaves the page cache by itself."""

    def close(self, shards: Sequence[int]) -> None:
        """Let go of shards whose files are to be removed: an open one would keep its place on the disk."""
        for shard in shards:
            self._files.close(self._shards[shard])


class OpenFiles:
    """safetensors files that are open, the last `OPEN_FILES` that were asked for."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, Any] = OrderedDict()

    def __getitem__(self, path: Path) -> Any:
        file = self._files.pop(path, None) or safe_open(path, framework="pt").__enter__()
        self._files[path] = file
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].__exit__(None, None, None)
        return file

    def close(self, path: Path) -> None:
        """Close a file, if it is open."""
        if (file := self._files.pop(path, None)) is not None:
            file.__exit__(None, None, None)
