"""The order of training: which documents each step sees, and which shards they are of.

An epoch goes through its shards in windows. The documents of a window are mixed and packed into batches that hold
nothing of another window, so that training never needs more shards at once than a window has. Nothing here looks at
hidden states: the order is known before there are any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch

from specc.core.errors import Exit, SpeccError
from specc.train.data import Corpus, Documents
from specc.train.determinism import stream
from specc.train.states import Document

WAITING: Final = 32
"""Documents among which a batch chooses: more pack tighter."""


@dataclass(frozen=True, slots=True)
class Window:
    """Shards that are trained on together, ascending, and their batches as places in the training documents.

    `last` says whether the epoch ends with it.
    """

    shards: Sequence[int]
    batches: list[list[int]]
    last: bool


@dataclass(frozen=True, slots=True)
class Step:
    """What the optimizer step after `number` others sees, of an epoch counted from 1.

    `done` are the shards of a window that ends with it, which no later step of the epoch sees. `last` says whether the
    epoch ends too.
    """

    number: int
    epoch: int
    documents: list[Document]
    done: Sequence[int]
    last: bool


class Plan:
    """Which documents each optimizer step sees: known before the first, and from any step on."""

    def __init__(self, corpus: Corpus, train: Mapping[str, Any], *, shuffle: bool, window: int) -> None:
        """Take the section `train`, and of `data` whether to shuffle, in windows of how many shards.

        Raises `SpeccError` if there is nothing to train on, no end to it, or a document too long for a batch.
        """
        if not corpus.training:
            raise SpeccError("there is nothing to train on: no training row has a response of two tokens or more",
                             hint="look at the loss masks: `specc explain data`", code=Exit.STAGE)  # fmt: skip
        self._corpus, self._train, self._shuffle, self._window = corpus, train, shuffle, window
        self._cache: dict[int, list[Window]] = {}
        self.tokens = corpus.training.tokens
        self.epochs, self.total = 0, 0
        wanted_epochs, wanted_steps = train["epochs"], train["steps"]
        if wanted_epochs is None and wanted_steps is None:
            raise SpeccError("training has no end", hint="set `train.epochs` or `train.steps`", code=Exit.INPUT)
        while (wanted_epochs is None or self.epochs < wanted_epochs) and (
            wanted_steps is None or self.total < wanted_steps
        ):
            self.epochs += 1
            self.total += sum(len(window.batches) for window in self.windows(self.epochs))
        if wanted_steps is not None:
            self.total = min(self.total, wanted_steps)

    def windows(self, epoch: int) -> list[Window]:
        """Return the windows of an epoch, counted from 1, in the order in which they are trained on."""
        if epoch not in self._cache:
            size, seed = self._train["batch_tokens"], self._train["seed"]
            found = epoch_windows(self._corpus.training, size, self._window, seed=seed, epoch=epoch,
                                  shuffle=self._shuffle)  # fmt: skip
            self._cache = {epoch: found}
        return self._cache[epoch]

    def windows_from(self, step: int) -> Iterator[tuple[int, Window, int]]:
        """Yield `(epoch, window, batches that are done)` of all windows that steps see from `step` on.

        The training's first step is step 0.
        """
        before = 0
        for epoch in range(1, self.epochs + 1):
            for window in self.windows(epoch):
                if step < before + len(window.batches) and before < self.total:
                    yield epoch, window, max(0, step - before)
                before += len(window.batches)

    def from_step(self, step: int) -> Iterator[Step]:
        """Yield what every step from `step` on sees."""
        for epoch, window, done in self.windows_from(step):
            for place in range(done, len(window.batches)):
                if step == self.total:
                    return
                documents = [self._corpus.training[document] for document in window.batches[place]]
                ended = place + 1 == len(window.batches)
                yield Step(step, epoch, documents, window.shards if ended else (), last=ended and window.last)
                step += 1


def shard_windows(shards: Iterable[int], size: int, *, seed: int, epoch: int, shuffle: bool) -> list[list[int]]:
    """Return an epoch's shards in windows of `size`, each in ascending order; epochs are counted from 1.

    Training is done with a window before it begins the next one, so that no shard is needed outside its own. Without
    `shuffle` the windows are consecutive; with it they are drawn anew each epoch.
    """
    order = sorted(shards)
    if shuffle:
        order.sort(key=lambda shard: hashlib.sha256(f"{seed}\0draft\0shards\0{epoch}\0{shard}".encode()).digest())
    return [sorted(order[start : start + size]) for start in range(0, len(order), size)]


def epoch_windows(
    documents: Documents, batch_tokens: int, window: int, *, seed: int, epoch: int, shuffle: bool
) -> list[Window]:
    """Return an epoch's windows of so many shards, with their batches: a pure function of all of these.

    Shards without a document are in no window. The documents of a window, in canonical order, are permuted by the
    epoch's own random stream.
    """
    firsts = documents.firsts  # [shards + 1]
    filled = (firsts.diff() > 0).nonzero()[:, 0].tolist()
    draw = stream(seed, "draft", "order", epoch)
    found: list[Window] = []
    parts = shard_windows(filled, window, seed=seed, epoch=epoch, shuffle=shuffle)
    for number, shards in enumerate(parts, start=1):
        places = torch.cat([torch.arange(int(firsts[shard]), int(firsts[shard + 1])) for shard in shards])
        if shuffle:
            places = places[torch.randperm(len(places), generator=draw)]
        found.append(Window(shards, packed(documents, places.tolist(), batch_tokens), last=number == len(parts)))
    return found


def packed(documents: Documents, order: Iterable[int], batch_tokens: int) -> list[list[int]]:
    """Return the batches into which documents go, given as places, in the order in which they come.

    The first document that waits begins a batch, and of those that come after it, as many as fill a batch and some
    `WAITING` more, those go with it that fill it best, the earlier ones where there is a choice. No batch has more
    than `batch_tokens` rows.
    """
    coming, waiting, done = iter(order), list[int](), list[list[int]]()
    rows = documents.rows
    while True:
        while sum(rows[place] for place in waiting[:-WAITING]) < batch_tokens and (more := [*islice(coming, WAITING)]):
            waiting += more
        if not waiting:
            return done
        first, *others = waiting
        if rows[first] > batch_tokens:
            raise SpeccError(f"row {documents[first].row} has {rows[first]} positions and a batch takes {batch_tokens}",
                             hint="raise `train.batch_tokens` to at least `data.sequence_length`",
                             code=Exit.STAGE)  # fmt: skip
        taken = fullest([rows[place] for place in others], batch_tokens - rows[first])
        done.append([first, *(others[number] for number in taken)])
        waiting = [place for number, place in enumerate(others) if number not in taken]


def fullest(sizes: Sequence[int], room: int) -> list[int]:
    """Return the places of those sizes, ascending, whose sum is the largest that is not above `room`.

    Bit t of `reached[i]` says whether some of the first i come to t. Of several choices it is the one that goes without
    the later ones.
    """
    reached, whole = [1], (1 << room + 1) - 1
    for size in sizes:
        reached.append((reached[-1] | reached[-1] << size) & whole)
        if reached[-1] >> room:
            break
    total, taken = reached[-1].bit_length() - 1, list[int]()
    for number in range(len(reached) - 2, -1, -1):
        if not reached[number] >> total & 1:
            taken.append(number)
            total -= sizes[number]
    return taken[::-1]
