"""Training data: documents of tokens and hidden states, their order, and packed batches of them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import torch
from safetensors import safe_open
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.train.determinism import stream
from specc.train.models import Batch, DraftModel, Reading
from specc.train.models.rows import depths

OPEN_FILES: Final = 64
OPEN_BATCHES: Final = 32
"""Batches that are still being filled at once: more pack tighter, and mix an epoch's order more."""


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


class Documents(Sequence[Document]):
    """Any number of documents, kept as 20 bytes each: one is made when it is asked for."""

    def __init__(self, columns: Sequence[Tensor] = ()) -> None:
        """Take int32 `[documents, 5]`, in parts: the fields of `Document`."""
        self._columns = torch.cat([torch.empty(0, 5, dtype=torch.int32), *columns])

    def __len__(self) -> int:
        return len(self._columns)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Documents: ...

    def __getitem__(self, index: int | slice) -> Document | Documents:
        found = self._columns[index]
        return Documents([found]) if isinstance(index, slice) else Document(*found.tolist())

    @property
    def tokens(self) -> int:
        """The tokens of all of them."""
        return int(self._columns[:, 2].sum())

    @property
    def rows(self) -> list[int]:
        """The rows of each."""
        return self._columns[:, 3].tolist()


class Corpus:
    """The artifacts `tokens` and `hidden_states`, read shard by shard through the page cache."""

    def __init__(self, tokens: Path, hidden: Path, layers: Sequence[int], last: int) -> None:
        """Open the shards and find the documents; `layers` are the draft's, `last` the verifier's number of layers.

        Raises `SpeccError` if the hidden states are of other tokens or other layers.
        """
        self._files: OrderedDict[Path, Any] = OrderedDict()
        index, states = (json.loads((folder / "index.json").read_text()) for folder in (tokens, hidden))
        wanted = [*layers, last]
        if missing := [layer for layer in wanted if layer not in states["layers"]]:
            raise SpeccError(f"the hidden states have layers {states['layers']} and no layer {missing[0]}",
                             where=str(hidden), code=Exit.STAGE)  # fmt: skip
        self._layers = [states["layers"].index(layer) for layer in wanted]
        pairs = list(zip(index["shards"], states["shards"], strict=False))
        if len(index["shards"]) != len(states["shards"]) or any(a["sha256"] != b["tokens_sha256"] for a, b in pairs):
            raise SpeccError("the hidden states were made from other tokens", where=str(hidden),
                             hint="build both again from one plan: `specc build`", code=Exit.STAGE)  # fmt: skip
        self._tokens = [tokens / shard["file"] for shard, _ in pairs]
        self._hidden = [hidden / shard["file"] for _, shard in pairs]
        found = [self._scan(number) for number in range(len(pairs))]
        self.training = Documents([columns[~held] for columns, held in found])
        self.validation = Documents([columns[held] for columns, held in found])
        self.left_out = sum(shard["rows"] for shard, _ in pairs) - len(self.training) - len(self.validation)
        """Rows without an assistant's token that a draft could propose."""

    def _scan(self, shard: int) -> tuple[Tensor, Tensor]:
        """Return a shard's documents, int32 `[documents, 5]`, and which of them are held out, bool `[documents]`."""
        file = self._open(self._tokens[shard])
        offsets, split, numbers, mask = (file.get_tensor(name) for name in ("offsets", "split", "row", "loss_mask"))
        starts, sizes = offsets[:-1], offsets.diff()
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)  # [tokens]
        places = torch.arange(len(mask)) - starts[owner]
        proposed = torch.where(depths(mask.bool(), places) >= 0, places, -1)
        last = torch.full_like(sizes, -1).scatter_reduce(0, owner, proposed, "amax")  # [rows of the shard]
        columns = torch.stack([torch.full_like(sizes, shard), starts, sizes, last - 1, numbers.to(sizes.dtype)], 1)
        return columns[last >= 0].to(torch.int32), split.bool()[last >= 0]

    def read(self, document: Document, tokens: int | None = None) -> Reading:
        """Return a document's first `tokens`, or all of them."""
        start, count = document.start, document.tokens if tokens is None else tokens
        file, states = self._open(self._tokens[document.shard]), self._open(self._hidden[document.shard])
        ids = file.get_slice("input_ids")[start : start + count].to(torch.int64)
        hidden = states.get_slice("hidden_states")[start : start + count][:, self._layers]
        return Reading(ids, hidden[:, :-1], hidden[:, -1])

    def mask(self, document: Document, tokens: int | None = None) -> Tensor:
        """Return what the assistant wrote of a document's first `tokens`, or of all, bool `[tokens]`."""
        start, count = document.start, document.tokens if tokens is None else tokens
        file = self._open(self._tokens[document.shard])
        return file.get_slice("loss_mask")[start : start + count].to(torch.bool)

    def batch(
        self,
        documents: Sequence[Document],
        model: DraftModel,
        normed: Callable[[Tensor], Tensor],
        random: torch.Generator,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> Batch:
        """Pack documents, up to their last targets, into one batch, or the part of it that a rank has.

        `normed` applies the verifier's final norm; `random` is the step's stream, the same on every rank. A rank
        without a document of its own takes the first.
        """
        chosen = model.choose([self.mask(document, document.rows + 2) for document in documents], random)
        own = range(rank, len(documents), world) or range(1)
        readings = [self.read(documents[place], documents[place].rows + 2) for place in own]
        content = model.pack(readings, [chosen[place] for place in own], normed)
        return Batch(content, idle=rank >= len(documents))

    def _open(self, path: Path) -> Any:
        file = self._files.pop(path, None) or safe_open(path, framework="pt").__enter__()
        self._files[path] = file
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].__exit__(None, None, None)
        return file


def epoch_batches(documents: Documents, batch_tokens: int, *, seed: int, epoch: int, shuffle: bool) -> list[list[int]]:
    """Return an epoch's batches, as places in `documents`: a pure function of these, the seed and the epoch.

    Each document goes into the first open batch with room for its rows; the oldest open batch is closed when
    there are too many. No batch has more than `batch_tokens` rows.
    """
    rows = documents.rows
    if rows and max(rows) > batch_tokens:
        document = documents[rows.index(max(rows))]
        raise SpeccError(f"row {document.row} has {document.rows} positions and a batch takes {batch_tokens}",
                         hint="raise `train.batch_tokens` to at least `data.sequence_length`",
                         code=Exit.STAGE)  # fmt: skip
    order = range(len(documents))
    if shuffle:
        order = torch.randperm(len(documents), generator=stream(seed, "draft", "order", epoch)).tolist()
    done: list[list[int]] = []
    filling: list[tuple[int, list[int]]] = []
    for place in order:
        for number, (used, batch) in enumerate(filling):
            if used + rows[place] <= batch_tokens:
                batch.append(place)
                filling[number] = (used + rows[place], batch)
                break
        else:
            filling.append((rows[place], [place]))
            if len(filling) > OPEN_BATCHES:
                done.append(filling.pop(0)[1])
    return done + [batch for _, batch in filling]
