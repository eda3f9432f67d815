"""Packed rows of documents, and which of them a step of training-time test needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

EVEN: Final = 64
"""What numbers of rows are rounded up to. oneDNN compiles a kernel for every shape that it meets, and keeps it: where
every batch has shapes of its own, that takes 6 % of the time and a gigabyte."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Documents one after another, row i of each being (g_i, x_{i+1}).

    `aux` `[rows, aux * hidden]`; `positions` int64 `[rows]`; `tokens` int64 `[rows + steps - 1]` or longer;
    `documents` are `(start, end)` rows, and later ones are of none; `queries[k]` int64, rising: the rows whose
    state step k computes. Each contains the next, and `tokens[row + k]` is of the row's own document for every
    row in `queries[k]` that a target is proposed from: of others nothing is asked.
    """

    aux: Tensor
    tokens: Tensor
    positions: Tensor
    documents: list[tuple[int, int]]
    queries: list[Tensor]


@dataclass(frozen=True, slots=True)
class Targets:
    """The tokens to be proposed, each once: step k proposes it from the row k before the one of step 0.

    `normed` `[targets, hidden]` are the verifier's final states, after its norm, that predict them. `counted`
    bool `[steps, targets]`: whether a served draft could start there; `places[k]` int64 `[targets]` is the row's
    place among `queries[k]`, 0 where it is not counted.
    """

    normed: Tensor
    counted: Tensor
    places: list[Tensor]


def plan_queries(rows: Tensor, depths: Tensor, steps: int, total: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return `(queries, counted, places)` for targets proposed by the packed `rows`, of `total`, at step 0.

    `rows` and `depths` int64 `[targets]`, rows rising; a target's depth is the longest step that may propose it.
    Step k proposes a target from `row - k`; it computes besides what later steps start from, and as many other rows
    as make their number a multiple of `EVEN`. A document of 6 tokens, the last three written by the
    assistant: served, the first draft starts when x_3 is there, so x_4 has depth 0 and x_5 depth 1. Over two steps,
    with `EVEN` 2:

        row                  0  1  2  3
        proposes at step 0   2  3  4  5
        step 0 counts              c  c      computes 2, 3
        step 1 counts              c         computes 2 (x_5, one row before the row of step 0) and 3
    """
    counted = torch.stack([depths >= k for k in range(steps)])  # [steps, targets]
    last = torch.full((total,), -1)  # the last step that needs the row, -1 for none
    for k in range(steps):
        last[rows[counted[k]] - k] = k
    order = last.sort(descending=True, stable=True).indices
    queries = [order[: even(max(1, int((last >= k).sum())))].sort().values for k in range(steps)]
    places = [torch.searchsorted(queries[k], rows - k) * counted[k] for k in range(steps)]
    return queries, counted, places


def pack(  # noqa: PLR0917 - the columns of a batch
    aux: Tensor, tokens: Tensor, documents: list[tuple[int, int]], proposed: Tensor, depths: Tensor, normed: Tensor,
    steps: int,
) -> tuple[Rows, Targets]:  # fmt: skip
    """Return the rows and targets of `steps` steps, the numbers of both rounded up by `even`.

    `aux` `[rows, aux * hidden]`, `tokens` int64 `[rows]`, `documents` as in `Rows`; `proposed` and `depths` int64
    `[targets]` as `plan_queries` takes them, `normed` `[targets, hidden]`.
    """
    total, targets = even(len(tokens)), even(len(proposed))
    queries, counted, places = plan_queries(proposed, depths, steps, total)
    positions = torch.cat([torch.arange(end - start) for start, end in documents])
    rows = Rows(
        lengthen(aux, total), lengthen(tokens, total + steps - 1), lengthen(positions, total), documents, queries
    )
    counted = lengthen(counted.t(), targets).t()
    return rows, Targets(lengthen(normed, targets), counted, [lengthen(place, targets) for place in places])


def lengthen(tensor: Tensor, rows: int) -> Tensor:
    """Return `tensor` `[fewer rows, ...]` with zeros (or false) below."""
    return torch.cat((tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])))


def even(count: int) -> int:
    """Return `count` rounded up to a multiple of `EVEN`."""
    return count + -count % EVEN


def depths(mask: Tensor, places: Tensor | None = None) -> Tensor:
    """Return for each token of a document the longest step that may propose it, -1 for none; int64 `[tokens]`.

    `mask` bool `[tokens]`: what the assistant wrote. `places` int64 `[tokens]` are the tokens' places in their
    documents, where there are several, one after another. A draft starts from a token that the verifier has just
    made and proposes the ones after it, so the first token of a response is never proposed. The document's
    first token has no state before it, and starts nothing.

        mask    . . x x x x . x x
        depth   - - - 0 1 2 - - 0
    """
    here = torch.arange(len(mask))
    breaks = torch.where(mask & ((here if places is None else places) > 0), -1, here).cummax(0).values
    return torch.where(here - breaks >= 2, here - breaks - 2, -1)  # breaks: the last token before the response


def whole(aux: Tensor, tokens: Tensor, steps: int) -> Rows:
    """Return the rows of one document, every step computed at every row that has a token for it.

    `aux` `[tokens, aux * hidden]`, `tokens` int `[tokens]`.
    """
    count = len(tokens) - 1
    return Rows(
        aux=aux[:count],
        tokens=tokens[1:].to(torch.int64),
        positions=torch.arange(count),
        documents=[(0, count)],
        queries=[torch.arange(max(0, count - k)) for k in range(steps)],
    )
