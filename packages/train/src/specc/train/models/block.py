"""Blocks of drafted tokens: where they start, what they see, what their tokens count for.

A block starts at an anchor, a token that the verifier has made, and stands at the positions from the anchor's on. All
of its tokens see the verifier's states of the positions before the anchor, and each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from specc.train.models.attention import BLOCK, Block
from specc.train.models.base import Reading
from specc.train.models.rows import depths, even, lengthen

TOGETHER: Final = 8
"""What numbers of blocks are rounded up to, for oneDNN's sake as in `rows.EVEN`."""
UNSEEN: Final = -1e30
"""Score of what is not visible; finite, since with a window a query may see nothing of the context at all."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """A document's blocks: the anchors' `places` in it, and how many tokens after each are counted, `runs`.

    Both int64 `[blocks]`, places rising from 1 on.
    """

    places: Tensor
    runs: Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """A document's packed `rows` and `blocks`, both `(start, end)`."""

    rows: tuple[int, int]
    blocks: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of documents, one after another, and the states that they read.

    `aux` `[rows, aux * hidden]` and `positions` int64 `[rows]`: row i of a document is its position i. `tokens` int64
    `[blocks]` are the anchors and `places` int64 `[blocks]` where they stand; `slots` is the number of tokens of a
    block. Later rows and blocks are of no document: such a block sees itself alone.
    """

    aux: Tensor
    positions: Tensor
    spans: list[Span]
    tokens: Tensor
    places: Tensor
    slots: int


@dataclass(frozen=True, slots=True)
class Targets:
    """What the slots of blocks are to propose.

    `counted` bool `[blocks, slots]`; `slots` int64 `[targets]` are the counted ones' places among all, and `normed`
    `[targets, hidden]` the verifier's final states, after its norm, that predict their tokens. `valid` bool
    `[targets]`: others only make the number even. `tokens` int64 `[blocks, slots + 1]` are the documents' own: slot k
    is to propose column k + 1, which stands after column k; 0 beyond a document's end.
    """

    counted: Tensor
    slots: Tensor
    normed: Tensor
    valid: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class Sight:
    """What the layers share: cosines and sines of slots and of rows, and the masks of both parts of the attention.

    `angles` `[blocks * slots, 1, head size]`, `context` `[rows, 1, head size]`; `where` as `StepAttention` takes it,
    `own` its float32 `[slots, slots]`, None where a block's tokens all see each other.
    """

    slots: int
    angles: tuple[Tensor, Tensor]
    context: tuple[Tensor, Tensor]
    where: list[Block]
    own: Tensor | None


def anchors_of(mask: Tensor) -> Anchors:
    """Return every place of a document that a block may start from.

    `mask` bool `[tokens]`: what the assistant wrote. A draft starts from a token that the verifier has just made, and
    what it proposes is counted while it is of the same response, as in `depths`.

        mask     . . x x x x . x x
        places       2 3 4     7
        runs         3 2 1     1
    """
    here = torch.arange(len(mask))
    end = torch.where(mask, len(mask), here).flip(0).cummin(0).values.flip(0)  # of the response that a token is in
    places = (depths(mask) >= 0).nonzero()[:, 0] - 1
    return Anchors(places, end[places] - places - 1)


def draw(found: Sequence[Anchors], most: int, random: torch.Generator) -> list[Anchors]:
    """Return about `most` of a step's anchors, drawn in each document in proportion to what it has, at least one.

    They are drawn without replacement, and more than `most` only if there are more documents.
    """
    sizes = [len(one.places) for one in found]
    if sum(sizes) <= most:
        return list(found)
    spare = max(0, most - len(found))  # beside the one that each document has
    chosen: list[Anchors] = []
    for one, size in zip(found, sizes, strict=True):
        count = 1 + spare * (size - 1) // max(1, sum(sizes) - len(sizes))
        kept = torch.randperm(size, generator=random)[:count].sort().values
        chosen.append(Anchors(one.places[kept], one.runs[kept]))
    return chosen


def pack(
    documents: Sequence[Reading],
    chosen: Sequence[Anchors],
    normed: Callable[[Tensor], Tensor],
    *,
    slots: int,
    ahead: int,
    dtype: torch.dtype,
) -> tuple[Blocks, Targets]:
    """Return blocks of `slots` tokens and their targets, the numbers of rows, blocks and targets rounded up.

    Slot k proposes the token k + `ahead` after its block's anchor; without `ahead` slot 0 has nothing to propose.
    """
    spans, aux, last, known, counted = list[Span](), list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    row = block = 0
    step = torch.arange(slots) + ahead  # distance from the anchor of what a slot proposes
    for document, anchors in zip(documents, chosen, strict=True):
        rows, blocks = int(anchors.places[-1]), len(anchors.places)
        spans.append(Span((row, row + rows), (block, block + blocks)))
        row, block = row + rows, block + blocks
        aux.append(document.aux[:rows].flatten(1))
        here = (step > 0) & (step <= anchors.runs[:, None])  # [blocks, slots]
        ahead_of = anchors.places[:, None] + step  # places of what the slots propose
        last.append(document.last[ahead_of[here] - 1])
        counted.append(here)
        columns = torch.cat((ahead_of[:, :1] - 1, ahead_of), 1)  # [blocks, slots + 1]
        count = len(document)
        known.append(torch.where(columns < count, document.ids[columns.clamp(max=count - 1)], 0))
    total = block + -block % TOGETHER
    places = torch.cat([anchors.places for anchors in chosen])
    tokens = torch.cat([document.ids[one.places] for document, one in zip(documents, chosen, strict=True)])
    positions = torch.cat([torch.arange(end - start) for start, end in (span.rows for span in spans)])
    flat = torch.cat(counted).flatten().nonzero()[:, 0]
    targets = even(len(flat))
    blocks = Blocks(lengthen(torch.cat(aux).to(dtype), even(row)), lengthen(positions, even(row)), spans,
                    lengthen(tokens, total), lengthen(places, total), slots)  # fmt: skip
    return blocks, Targets(
        counted=lengthen(torch.cat(counted), total),
        slots=lengthen(flat, targets),
        normed=lengthen(normed(torch.cat(last)), targets),
        valid=torch.arange(targets) < len(flat),
        tokens=lengthen(torch.cat(known), total),
    )


def blocks_at(document: Reading, places: Tensor, slots: int, dtype: torch.dtype) -> Blocks:
    """Return one document's blocks at the anchors `places`, int64 `[blocks]`, rising from 1 on."""
    rows = int(places[-1])
    return Blocks(document.aux[:rows].flatten(1).to(dtype), torch.arange(rows), [Span((0, rows), (0, len(places)))],
                  document.ids[places], places, slots)  # fmt: skip


def seen_context(places: Tensor, slots: int, first: int, last: int, window: int | None) -> Tensor:
    """Return which positions `first:last` of its document each slot sees, bool `[blocks * slots, last - first]`.

    `places` int64 `[blocks]` are the anchors'. A window of W positions ends with the slot's own position, so that a
    later slot sees less. Blocks of three slots at the anchors 3 and 5:

                    window None    window 4
        position    0 1 2 3 4      0 1 2 3 4
               3    x x x . .      x x x . .
               4    x x x . .      . x x . .
               5    x x x . .      . . x . .

               5    x x x x x      . . x x x
               6    x x x x x      . . . x x
               7    x x x x x      . . . . x
    """
    keys = torch.arange(first, last)
    anchors = places.repeat_interleave(slots)[:, None]
    seen = keys < anchors
    if window is None:
        return seen
    return seen & (keys > anchors + torch.arange(slots).repeat(len(places))[:, None] - window)


def seen_own(slots: int, window: int | None, *, causal: bool) -> Tensor:
    """Return which slots of its block each slot sees, bool `[slots, slots]`.

    A window holds in both directions, as in vLLM. Blocks of four slots:

        window None    window 2    causal, window 2
        x x x x        x x . .     x . . .
        x x x x        x x x .     x x . .
        x x x x        . x x x     . x x .
        x x x x        . . x x     . . x x
    """
    back = torch.arange(slots)[:, None] - torch.arange(slots)
    seen = back.abs() < (window or slots)
    return seen & (back >= 0) if causal else seen


def looks(blocks: Blocks, window: int | None) -> list[Block]:
    """Return what the slots see of the context, in parts of whole blocks that never span two documents."""
    found: list[Block] = []
    size = max(1, BLOCK // blocks.slots)
    for span in blocks.spans:
        (base, _), (start, stop) = span.rows, span.blocks
        for begin in range(start, stop, size):
            end = min(begin + size, stop)
            places = blocks.places[begin:end]
            first = 0 if window is None else max(0, int(places[0]) - window + 1)
            last = int(places[-1])
            if first >= last:
                continue  # a window of one position: the slot's own
            seen = seen_context(places, blocks.slots, first, last, window)
            mask = torch.zeros(seen.shape).masked_fill_(~seen, UNSEEN)
            found.append(Block((begin * blocks.slots, end * blocks.slots), (base + first, base + last), mask))
    return found


def own_mask(slots: int, window: int | None, *, causal: bool) -> Tensor | None:
    """Return `seen_own` as scores, float32 `[slots, slots]`; None where all is seen."""
    seen = seen_own(slots, window, causal=causal)
    return None if bool(seen.all()) else torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))


def dpace(ce: Tensor, counted: Tensor, alpha: float) -> Tensor:
    """Return D-PACE's weights (arXiv:2605.18810, equations 7 and 8), fp32 at least, `[blocks, slots]`.

    `ce` `[blocks, slots]` is -log of the draft's probability q of the verifier's token. With s = (1 - alpha) q + alpha
    as a softened chance that a token is accepted, the expected number of accepted tokens is the sum of s_1, s_1 s_2,
    and so on; a token's weight is the part of it that its s is a factor of, and 0 where nothing is counted:

        counted    . x    x     x
        s          1 1    1/2   1/2        (alpha 0)
        product    - 1    1/2   1/4
        weight     0 7/4  3/4   1/4
    """
    chance = torch.where(counted, (1 - alpha) * torch.exp(-ce) + alpha, 1.0)
    reached = chance.cumprod(-1) * counted
    return reached.flip(-1).cumsum(-1).flip(-1) * counted


def exponential(slots: int, ahead: int, gamma: float) -> Tensor:
    """Return exp(-n / gamma) for the slot that proposes a block's token n, counted from 0; fp64 `[slots]`."""
    return torch.exp(-(torch.arange(slots, dtype=torch.float64) + ahead - 1) / gamma)
