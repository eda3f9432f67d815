"""EAGLE-3's attention at an unrolled step: causal inside a document, and a few keys of the query's own.

At step k of training-time test (arXiv:2503.01840, section 3.2) the draft at row i reads what it would read when
served: the first step's keys of its document up to row i, and its own keys of steps 1..k. The first part is
ordinary causal attention, one document at a time; the second is k scores a query. Nothing of
`[positions, 3 * positions]` is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Queries that are scored at once: bounds the scores' memory for long documents, and skips most of what is masked."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries `queries[0]:queries[1]` (places among the step's queries) and the first step's keys they can see."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    mask: Tensor
    """Float32 `[queries, keys]`: 0 where visible, -inf elsewhere."""


@dataclass(frozen=True, slots=True)
class Own:
    """The queries' own keys where these are other queries' too.

    `places` int64 `[queries, own]` among the step's inputs; `mask` float32 `[queries, own]`: 0 where visible, -inf
    elsewhere.
    """

    places: Tensor
    mask: Tensor

    def of(self, inputs: Tensor) -> Tensor:
        """Return `[queries, own, ...]` of `inputs` `[inputs, ...]`."""
        return inputs.index_select(0, self.places.flatten()).view(*self.places.shape, *inputs.shape[1:])


def visible(rows: Tensor, step: int, first: int, last: int, window: int | None) -> Tensor:
    """Return which of the first step's keys `first:last` the queries at `rows` see at `step`, bool `[rows, keys]`.

    All are rows of one document. Served at step k, row i stands at position i + k, so that a window of W
    positions ends k rows earlier. A document of rows 0..3 at step 1, queries at rows 1..3:

        window None      window 2
        keys 0 1 2 3     keys 0 1 2 3
        1    x x . .     1    . x . .
        2    x x x .     2    . . x .
        3    x x x x     3    . . . x

    With window 2 the query at row 3 stands at position 4 and sees positions 3 and 4, the latter being its own
    key of step 1.
    """
    keys = torch.arange(first, last)
    seen = keys <= rows[:, None]
    return seen if window is None else seen & (keys > rows[:, None] + step - window)


def blocks(rows: Tensor, documents: list[tuple[int, int]], step: int, window: int | None) -> list[Block]:
    """Split a step's queries into blocks that never span two documents.

    `rows` int64 `[queries]`, rising; `documents` are the packed rows `(start, end)` of each document. Queries
    that see no key of the first step at all (a window no longer than `step`) are in no block.
    """
    found: list[Block] = []
    if window is not None and window <= step:
        return found
    borders = torch.searchsorted(rows, torch.tensor(documents).reshape(-1)).tolist()
    for (start, _), low, high in zip(documents, borders[::2], borders[1::2], strict=True):
        for begin in range(low, high, BLOCK):
            end = min(begin + BLOCK, high)
            here = rows[begin:end]
            oldest, newest = int(here[0]), int(here[-1])
            first = start if window is None else max(start, oldest + step - window + 1)
            seen = visible(here, step, first, newest + 1, window)
            mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
            found.append(Block((begin, end), (first, newest + 1), mask))
    return found


class StepAttention(torch.autograd.Function):
    """Attention over the first step's keys and the queries' own later ones, merged by their log-sum-exp.

    The backward pass is that of attention with the merged log-sum-exp in place of a block's own, as in ring
    attention (arXiv:2310.01889): probabilities are made again from the scores, none is kept.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, own_keys: Tensor, own_values: Tensor, where: list[Block],
        own_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return `[queries, heads, size]`.

        `query` `[queries, heads, size]`; `keys`, `values` `[rows, kv heads, size]` of the first step;
        `own_keys`, `own_values` `[queries, own, kv heads, size]` of the later steps that the query may see. Where
        several queries share their own keys these are `[sharers, own, kv heads, size]`, each for the next
        `queries / sharers` queries, and `own_mask` float32 `[queries / sharers, own]`, with the sharers before it where
        they differ, is 0 where one is visible and -inf elsewhere; each query sees one.
        """
        count, heads, size = query.shape
        groups = keys.shape[1]
        scale = size**-0.5
        # Scores are few beside the vocabulary's logits: in fp32 they cost little and round nothing. The heads that
        # share keys are rows of one product.
        wide = torch.promote_types(query.dtype, torch.float32)
        q = _grouped(query, groups, wide) * scale  # [kv, queries, group, size]
        k, v = (x.to(wide).transpose(0, 1).contiguous() for x in (keys, values))  # [kv, rows, size]
        ok, ov = (
            x.to(wide).permute(2, 0, 1, 3).contiguous() for x in (own_keys, own_values)
        )  # [kv, queries, own, size]
        mine = own_keys.shape[1]
        shared = _shared(q, len(own_keys))  # queries that share keys are rows of one product
        own = (q.view(*shared, size) @ ok.transpose(2, 3)).view(*q.shape[:3], mine)  # [kv, queries, group, own]
        if own_mask is not None:
            own.view(groups, len(own_keys), own_mask.shape[-2], q.shape[2], mine).add_(own_mask[..., None, :])
        # With no visible key at all the sum is over the query's own alone.
        total = torch.logsumexp(own, -1, keepdim=True)  # [kv, queries, group, 1]; -inf without own keys
        out = torch.zeros_like(q)
        for block in where:
            (a, b), (c, d) = block.queries, block.keys
            s = _scores(q[:, a:b], k[:, c:d], block.mask)
            p = torch.softmax(s, -1)
            first = s.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()  # log-sum-exp, [kv, queries, group, 1]
            both = torch.logaddexp(first, total[:, a:b])
            out[:, a:b] = (p.flatten(1, 2) @ v[:, c:d]).view_as(out[:, a:b]).mul_((first - both).exp_())
            total[:, a:b] = both
        weights = torch.exp(own - total)
        out += (weights.view(*shared, mine) @ ov).view_as(out)
        ctx.save_for_backward(q, k, v, ok, ov, out, total, weights)
        ctx.where, ctx.scale, ctx.dtype = where, scale, query.dtype
        return out.transpose(0, 1).reshape(count, heads, size).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the five tensors, in their dtype."""
        q, k, v, ok, ov, out, total, weights = ctx.saved_tensors
        grad = _grouped(grads[0], len(k), q.dtype)  # [kv, queries, group, size]
        delta = (grad * out).sum(-1, keepdim=True)  # [kv, queries, group, 1]
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in ctx.where:
            (a, b), (c, d) = block.queries, block.keys
            p = _scores(q[:, a:b], k[:, c:d], block.mask).sub_(total[:, a:b]).exp_()
            g = grad[:, a:b].flatten(1, 2)  # [kv, queries * group, size]
            ds = (g @ v[:, c:d].transpose(1, 2)).view_as(p).sub_(delta[:, a:b]).mul_(p)
            p, ds = p.flatten(1, 2), ds.flatten(1, 2)  # [kv, queries * group, keys]
            dv[:, c:d] += p.transpose(1, 2) @ g
            dk[:, c:d] += ds.transpose(1, 2) @ q[:, a:b].flatten(1, 2)
            dq[:, a:b] = (ds @ k[:, c:d]).view_as(dq[:, a:b])
        shared = _shared(q, ok.shape[1])
        w, g = weights.view(*shared, weights.shape[-1]), grad.view(*shared, grad.shape[-1])
        dov = w.transpose(2, 3) @ g  # [kv, sharers, own, size]
        ds = w * (g @ ov.transpose(2, 3) - delta.view(*shared, 1))  # [kv, sharers, queries * group, own]
        dok = ds.transpose(2, 3) @ q.view_as(g)
        dq = dq.add_((ds @ ok).view_as(dq)).mul_(ctx.scale).transpose(0, 1).flatten(1, 2)
        dk, dv = dk.transpose(0, 1), dv.transpose(0, 1)
        dok, dov = dok.permute(1, 2, 0, 3), dov.permute(1, 2, 0, 3)
        return *(x.to(ctx.dtype) for x in (dq, dk, dv, dok, dov)), None, None


def _grouped(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Return `[queries, heads, size]` as `[kv heads, queries, heads of one kv head, size]`."""
    return x.to(dtype).unflatten(1, (groups, -1)).transpose(0, 1).contiguous()


def _shared(q: Tensor, sharers: int) -> tuple[int, int, int]:
    """Return the shape of queries `[kv, queries, group, size]` by sharers: `(kv, sharers, queries of one * group)`."""
    return len(q), sharers, q.shape[1] * q.shape[2] // max(1, sharers)


def _scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return masked scores `[kv, queries, group, keys]`; `q` carries the scale."""
    s = q.flatten(1, 2) @ k.transpose(1, 2)
    return s.view(*q.shape[:3], -1).add_(mask[:, None])
