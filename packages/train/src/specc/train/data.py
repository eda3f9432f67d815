"""Training data: documents of tokens and hidden states, and packed batches of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import torch
from safetensors import safe_open
from torch import Tensor

from specc.train.models import Batch, DraftModel, Reading
from specc.train.models.rows import depths
from specc.train.states import Document, States


class Documents(Sequence[Document]):
    """Any number of documents, kept as 24 bytes each: one is made when it is asked for."""

    def __init__(self, columns: Sequence[Tensor] = ()) -> None:
        """Take int32 `[documents, 6]`, in parts: the fields of `Document`."""
        self._columns = torch.cat([torch.empty(0, 6, dtype=torch.int32), *columns])

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
        return int(self._columns[:, 3].sum())

    @cached_property
    def rows(self) -> list[int]:
        """The rows of each."""
        return self._columns[:, 4].tolist()

    @property
    def firsts(self) -> Tensor:
        """The place of each shard's first one, int64 `[shards + 1]`: they are in the order of the shards."""
        shards = self._columns[:, 0].contiguous()
        return torch.searchsorted(shards, torch.arange(int(shards[-1]) + 2 if len(shards) else 1, dtype=torch.int32))


class Corpus:
    """The artifact `tokens`, read shard by shard through the page cache, and the hidden states of its documents."""

    def __init__(self, tokens: Path, states: States) -> None:
        """Open the shards of tokens and find the documents; nothing is read of the hidden states yet."""
        self._states = states
        shards = json.loads((tokens / "index.json").read_text())["shards"]
        self._tokens = [tokens / shard["file"] for shard in shards]
        found = [self._scan(number) for number in range(len(shards))]
        self.training = Documents([columns[~held] for columns, held in found])
        self.validation = Documents([columns[held] for columns, held in found])
        self.left_out = sum(shard["rows"] for shard in shards) - len(self.training) - len(self.validation)
        """Rows without an assistant's token that a draft could propose."""

    def _scan(self, shard: int) -> tuple[Tensor, Tensor]:
        """Return a shard's documents, int32 `[documents, 6]`, and which of them are held out, bool `[documents]`."""
        with safe_open(self._tokens[shard], framework="pt") as file:
            offsets, split, numbers, mask = (file.get_tensor(name) for name in ("offsets", "split", "row", "loss_mask"))
        starts, sizes = offsets[:-1], offsets.diff()
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)  # [tokens]
        places = torch.arange(len(mask)) - starts[owner]
        proposed = torch.where(depths(mask.bool(), places) >= 0, places, -1)
        last = torch.full_like(sizes, -1).scatter_reduce(0, owner, proposed, "amax")  # [rows of the shard]
        shards, rows = torch.full_like(sizes, shard), torch.arange(len(sizes))
        columns = torch.stack([shards, rows, starts, sizes, last - 1, numbers.to(sizes.dtype)], 1)
        return columns[last >= 0].to(torch.int32), split.bool()[last >= 0]

    def read(self, document: Document, tokens: int | None = None) -> Reading:
        """Return a document's first `tokens`, or all of them."""
        count = document.tokens if tokens is None else tokens
        ids = self._column("input_ids", document, count)
        hidden = self._states.read(document, count)
        return Reading(ids.to(torch.int64), hidden[:, :-1], hidden[:, -1])

    def window_done(self) -> None:
        """Say that an epoch is done with the window at hand, save for the documents that are held out."""
        self._states.window_done()

    def mask(self, document: Document, tokens: int | None = None) -> Tensor:
        """Return what the assistant wrote of a document's first `tokens`, or of all, bool `[tokens]`."""
        return self._column("loss_mask", document, document.tokens if tokens is None else tokens).to(torch.bool)

    def _column(self, name: str, document: Document, count: int) -> Tensor:
        with safe_open(self._tokens[document.shard], framework="pt") as file:
            return file.get_slice(name)[document.start : document.start + count]

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
