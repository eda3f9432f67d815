"""P-EAGLE (arXiv:2602.01469): EAGLE-3's decoder, which proposes a whole draft in one pass, as vLLM runs it.

A context row i of a document is EAGLE-3's: (g_i, x_{i+1}) proposes x_{i+2}, at position i. A draft from there, its
anchor, goes on with mask rows: the one of depth d stands at position i + d, reads a learned state and the mask token
in place of g and x, and proposes x_{i+2+d}. All mask rows are the same row before they are told their positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms import TensorSpec
from specc.train.losses import draft_losses
from specc.train.models.attention import Block, Own, blocks
from specc.train.models.base import Reading
from specc.train.models.eagle3 import Fusion, Memory, Step
from specc.train.models.rows import depths, even, lengthen

ANCHORS: Final = 256
"""Anchors whose drafts exist at once when tokens are proposed."""


@dataclass(frozen=True, slots=True)
class Context:
    """Documents one after another, row i of each being (g_i, x_{i+1}).

    `aux` `[rows, aux * hidden]`; `tokens` and `positions` int64 `[rows]`; `documents` are `(start, end)` rows, and
    later ones are of none.
    """

    aux: Tensor
    tokens: Tensor
    positions: Tensor
    documents: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Masks:
    """Mask rows, those of a depth one after another, and below them some that are there for their number alone.

    `anchors` and `depths` int64 `[masks]`: the packed row that each one's draft starts from, rising at a depth, and
    how far behind it stands. `own` are the mask rows of its draft that each one sees, `where` the context rows.
    """

    anchors: Tensor
    depths: Tensor
    own: Own
    where: list[Block]


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be proposed: `places` int64 `[targets]` among the states of the context's queries and of the masks.

    `normed` `[targets, hidden]` are the verifier's final states, after its norm; `counted` bool `[targets]` is false
    for those that are there for their number alone.
    """

    places: Tensor
    normed: Tensor
    counted: Tensor


@dataclass(frozen=True, slots=True)
class Content:
    """A batch: context rows, those whose state is asked for (int64, rising), mask rows, targets."""

    context: Context
    queries: Tensor
    masks: Masks
    targets: Targets


def mask_rows(
    anchors: Tensor, deepest: Tensor, documents: list[tuple[int, int]], last: int, window: int | None
) -> Masks:
    """Return the mask rows of drafts from packed rows `anchors`, at depths 1 to `deepest`, both int64 `[anchors]`.

    `anchors` rise, `last` is the greatest depth that there may be, and the number of rows is rounded up by `even`. A
    document of rows 0..3, drafts from row 1 to depth 2 and from row 2 to depth 1, mask rows written anchor+depth:

        window None                        window 2
              0 1 2 3   1+1 2+1 1+2        0 1 2 3   1+1 2+1 1+2
        1+1   x x . .    x   .   .         . x . .    x   .   .
        2+1   x x x .    .   x   .         . . x .    .   x   .
        1+2   x x . .    x   .   x         . . . .    x   .   x

    A mask row stands depth positions behind its anchor, and a window counts positions.
    """
    found = [(deepest >= depth).nonzero()[:, 0] for depth in range(1, last + 1)]
    places = torch.zeros(len(anchors), last, dtype=torch.int64)
    where: list[Block] = []
    base = 0
    for depth, some in enumerate(found, start=1):
        places[some, depth - 1] = base + torch.arange(len(some))
        where += [
            replace(block, queries=(base + block.queries[0], base + block.queries[1]))
            for block in blocks(anchors[some], documents, depth, window)
        ]
        base += len(some)
    total = max(even(base), even(1))  # at least some, so that all ranks compute alike
    drafts = torch.cat([*found, anchors.new_zeros(0)])  # [masks]
    counts = torch.tensor([len(some) for some in found], dtype=torch.int64)
    depth_of = torch.repeat_interleave(torch.arange(1, last + 1), counts)
    behind = lengthen(depth_of, total)[:, None] - torch.arange(1, last + 1)  # [masks, last]: of the own keys
    behind[base:] = -torch.arange(last)  # those that fill up see one key
    seen = (behind >= 0) & (behind < (window or last))
    mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
    own = Own(lengthen(places[drafts], total), mask)
    return Masks(lengthen(anchors[drafts], total), lengthen(depth_of, total), own, where)


def shares(counts: Sequence[int], most: int) -> list[int]:
    """Return how many of each document's `counts` are drawn: `most` in all or fewer, proportional, at least one each.

    A document without any has none. Where there are more documents than `most`, it is one of each.
    """
    full, total = sum(count > 0 for count in counts), sum(counts)
    if total <= most:
        return list(counts)
    spare = max(0, most - full)
    return [count and 1 + spare * (count - 1) // (total - full) for count in counts]


class Peagle(Fusion):
    """The draft model; `mask_hidden` `[1, 1, aux * hidden]` is read in place of the verifier's states."""

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__(draft, verifier)
        self.depths: int = draft["depths"]
        self.mask_token: int = draft["mask_token"]
        self.sampling: Mapping[str, Any] = draft["sampling"]
        self.coefficients = [1.0]
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, self.fc.in_features))

    @classmethod
    def initial(cls, spec: TensorSpec, random: torch.Generator) -> Tensor:
        """Return a trained tensor's random first value, fp32: a mask's state is as wide as a state after its norm."""
        random_state = spec.name == "mask_hidden"
        return torch.randn(spec.shape, generator=random) if random_state else super().initial(spec, random)

    def choose(self, masks: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
        """Return for each row of a document the greatest depth learnt from it, -1 for none; int64 `[tokens]`.

        All targets are learnt from at depth 0. Of the rows that propose these, at most `anchors` are drawn in the step,
        from each document a number proportional to its own; of these, n in all, at depth d as many as (n - d)
        max(ratio^d, floor), of those drawn at d - 1 whose drafts are in their response still.
        """
        room = self.depths + 1
        ahead = torch.cat([F.pad(depths(mask), (0, room), value=-1) for mask in masks])  # [tokens and room of all]
        sizes = [len(mask) + room for mask in masks]
        chosen = torch.full_like(ahead, -1)
        chosen[:-2][ahead[2:] >= 0] = 0
        anchors = [(one == 0).nonzero()[:, 0] for one in chosen.split(sizes)]
        quotas = shares([len(one) for one in anchors], self.sampling["anchors"])
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        drawn = [_some(one, quota, random) + start for one, quota, start in zip(anchors, quotas, starts, strict=False)]
        kept = torch.cat(drawn)
        count = len(kept)
        for depth in range(1, self.depths):
            kept = kept[ahead[kept + 2 + depth] >= depth]
            share = max(self.sampling["ratio"] ** depth, self.sampling["floor"])
            kept = _some(kept, int(max(0, count - depth) * share), random)
            chosen[kept] = depth
        return [one[:-room] for one in chosen.split(sizes)]

    def pack(
        self, documents: Sequence[Reading], chosen: Sequence[Tensor], normed: Callable[[Tensor], Tensor]
    ) -> Content:
        """Return context, masks and targets, documents one after another without their last two tokens' rows."""
        sizes = [len(document) - 2 for document in documents]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        borders = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        deepest = torch.cat([one[:size] for one, size in zip(chosen, sizes, strict=True)])  # [rows]
        aux = torch.cat([document.aux[:-2].flatten(1) for document in documents]).to(self.embed_tokens.dtype)
        tokens = torch.cat([document.ids[1:-1] for document in documents])
        last = torch.cat([document.last[1:-1] for document in documents])  # [rows]: what predicts x_{i+2}
        positions = torch.cat([torch.arange(size) for size in sizes])
        total = even(len(tokens))
        context = Context(lengthen(aux, total), lengthen(tokens, total), lengthen(positions, total), borders)
        masks = mask_rows(*_from(deepest, 1), borders, self.depths - 1, self.window)
        anchors, _ = _from(deepest, 0)
        # As many other rows as make their number even.
        order = (lengthen(deepest + 1, total) > 0).sort(descending=True, stable=True).indices
        queries = order[: even(len(anchors))].sort().values
        rows = torch.cat((anchors, (masks.anchors + masks.depths)[masks.depths > 0]))  # [targets]
        deeper = torch.arange(len(rows) - len(anchors)) + len(queries)
        places = torch.cat((torch.searchsorted(queries, anchors), deeper))
        count = even(len(rows))
        counted = lengthen(torch.ones(len(rows), dtype=torch.bool), count)
        targets = Targets(lengthen(places, count), lengthen(normed(last.index_select(0, rows)), count), counted)
        return Content(context, queries, masks, targets)

    def read(self, context: Context, queries: Tensor) -> tuple[Tensor, list[Memory]]:
        """Return the final, normed states of the `queries` among the context rows, and what mask rows attend to."""
        hidden = self.fuse(context.aux)  # [rows, hidden]
        embeds = F.embedding(context.tokens, self.embed_tokens)
        last = len(self.layers) - 1
        step = Step(
            0,
            self.rotary(context.positions, hidden.dtype),
            queries,
            blocks(torch.arange(len(context.tokens)), context.documents, 0, self.window) if last else [],
            blocks(queries, context.documents, 0, self.window),
        )
        memories: list[Memory] = []
        for index, layer in enumerate(self.layers):
            hidden, memory = layer(hidden, embeds, step, None, last=index == last)
            memories.append(memory)
        return self.norm(hidden), memories

    def fill(self, masks: Masks, positions: Tensor, memories: Sequence[Memory]) -> Tensor:
        """Return the final, normed states `[masks, hidden]` of mask rows; `positions` are the context rows'."""
        state = self.mask_hidden[0]  # [1, aux * hidden]; the first layer projects one row for all
        hidden = self.fc(state if self.input_norm is None else self.input_norm(state))
        embeds = self.embed_tokens[self.mask_token, None]
        angles = self.rotary(positions[masks.anchors] + masks.depths, hidden.dtype)
        step = Step(0, angles, None, masks.where, [], masks.own)
        for layer, memory in zip(self.layers, memories, strict=True):
            hidden, _ = layer(hidden, embeds, step, memory, last=False)
        return self.norm(hidden)

    def terms(self, content: Content, losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses at all depths, and the number of targets."""
        targets = content.targets
        first, memories = self.read(content.context, content.queries)
        deeper = self.fill(content.masks, content.context.positions, memories)
        states = torch.cat((first, deeper)).index_select(0, targets.places)  # [targets, hidden]
        values = draft_losses(states[None], targets.normed, self.head, losses).losses[0]
        return (values * targets.counted).sum()[None], targets.counted.sum()[None]

    def guesses(self, document: Reading, steps: int) -> Tensor:
        """Return every place's drafts, all tokens of each in one pass: none reads what another proposed."""
        count = len(document)
        found = torch.full((count, steps), -1)
        if count < 2:
            return found
        context, rows = self._whole(document), torch.arange(count - 1)
        states, memories = self.read(context, rows)
        found[:-1, 0] = self.propose(states)
        for anchors in rows.split(ANCHORS):
            deepest = (count - 2 - anchors).clamp(max=steps - 1)
            masks = mask_rows(anchors, deepest, context.documents, steps - 1, self.window)
            real = masks.depths > 0
            states = self.fill(masks, context.positions, memories)
            found[masks.anchors[real], masks.depths[real]] = self.propose(states[real])
        return found

    def logits(self, document: Reading, drafted: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits after `drafted`, which only their number has a part in."""
        context, depth = self._whole(document), len(drafted)
        row = torch.tensor([len(document) - 2])
        states, memories = self.read(context, row)
        if depth:
            masks = mask_rows(row, torch.tensor([depth]), context.documents, depth, self.window)
            states = self.fill(masks, context.positions, memories)[:depth]
        return states[-1] @ self.head.weight.t()

    def _whole(self, document: Reading) -> Context:
        """Return the rows of one document, all but its last token's."""
        count = len(document) - 1
        aux = document.aux[:-1].to(self.embed_tokens.dtype).flatten(1)
        return Context(aux, document.ids[1:], torch.arange(count), [(0, count)])


def _some(places: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return `count` of the `places` int64 `[places]`, or all if there are fewer, in their order."""
    return places[torch.randperm(len(places), generator=random)[:count].sort().values]


def _from(deepest: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the rows whose drafts go to `depth` at least, and how far they go; `deepest` int64 `[rows]`."""
    rows = (deepest >= depth).nonzero()[:, 0]
    return rows, deepest[rows]
