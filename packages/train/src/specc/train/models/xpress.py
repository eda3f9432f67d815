"""xPress (arXiv:2608.02438): DFlash and a refiner head, trained and decoded by passes over a whole block.

The refiner reads each slot's state, the block's mean state and the token before what the slot proposes, mixes these
along the block, to later slots only, and adds a low-rank term to the slot's logits. The tokens before are the draft's
own: all are proposed at once from the base logits, and proposed again from the refined logits a few times (Jacobi
iteration). After n passes the first n tokens are those of drafting one after another; later ones may not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms import TensorSpec, vocabulary_of
from specc.train.losses import draft_losses
from specc.train.models.base import PROPOSED, Reading
from specc.train.models.block import Blocks, Targets, blocks_at
from specc.train.models.dflash import DRAFTED, DFlash


def mixed(x: Tensor, mix: Tensor) -> Tensor:
    """Return what each slot takes from itself and those before it: sum over j <= k of mix[c, k, j] x[j, c].

    `x` `[blocks, slots, rank]`, `mix` `[rank, slots or more, slots or more]`, of which what is above the diagonal
    counts for nothing. Four slots:

        takes from    0 1 2 3
                 0    x . . .
                 1    x x . .
                 2    x x x .
                 3    x x x x
    """
    slots = x.shape[1]
    return torch.einsum("ckj,bjc->bkc", mix[:, :slots, :slots].tril(), x)


class Refiner(nn.Module):
    """What is added to the logits, but for the last product with `readout`.

    `mix_l` is made causal where it is used: a mask kept beside the weights would be in no checkpoint.
    """

    def __init__(self, verifier: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, block, rank = verifier["hidden_size"], draft["block_size"], draft["refiner"]["rank"]
        inner = rank * draft["refiner"]["mlp_ratio"]
        self.token_embed = nn.Embedding(verifier["vocab_size"], rank)
        self.down_h = nn.Linear(hidden, rank, bias=False)
        self.down_g = nn.Linear(hidden, rank, bias=False)
        self.in_proj = nn.Linear(3 * rank, rank, bias=False)
        self.mix_l = nn.Parameter(torch.zeros(rank, block, block))
        self.mlp_gate = nn.Linear(rank, inner, bias=False)
        self.mlp_up = nn.Linear(rank, inner, bias=False)
        self.mlp_down = nn.Linear(inner, rank, bias=False)
        self.readout = nn.Linear(rank, vocabulary_of(draft, verifier), bias=False)

    def read(self, states: Tensor) -> Tensor:
        """Return what all passes share, `[blocks, slots, 2 * rank]`, of states `[blocks, slots, hidden]`."""
        own, mean = self.down_h(states), self.down_g(states.mean(1, keepdim=True))
        return torch.cat((own, mean.expand_as(own)), -1)

    def forward(self, shared: Tensor, before: Tensor) -> Tensor:
        """Return factors `[blocks, slots, rank]` for `shared` of `read`, of as many slots as `before` or more.

        `before` int64 `[blocks, slots]` are the tokens before what each slot proposes, as the verifier's ids.
        """
        x = self.in_proj(torch.cat((shared[:, : before.shape[1]], self.token_embed(before)), -1))
        x = x + mixed(x, self.mix_l)
        return x + self.mlp_down(F.silu(self.mlp_gate(x)) * self.mlp_up(x))


class XPress(DFlash):
    """The draft model.

    Of a block's tokens, the ones before what its first slots propose are known: the anchor, and without `ahead` the
    document's token before it too, which the slot of the anchor reads. They are called `known`, int64
    `[blocks, 2 - ahead]`.
    """

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__(draft, verifier)
        options = draft["refiner"]
        self.passes: int = options["passes"]
        self.rounds: int = options["rounds"]
        self.refiner_head = Refiner(verifier, draft)
        self.coefficients = [1.0, options["own_weight"], options["base_weight"]]

    @classmethod
    def initial(cls, spec: TensorSpec, random: torch.Generator) -> Tensor:
        """Return a trained tensor's first value, fp32: slots are not mixed at first."""
        return torch.zeros(spec.shape) if spec.name.endswith("mix_l") else super().initial(spec, random)

    def terms(self, content: tuple[Blocks, Targets], losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return sums of losses and of weights: after the document's tokens, after the draft's own, and of the base.

        The draft's own tokens are those of so many passes, from none on; nothing is learnt through their choice.
        """
        blocks, targets = content
        states, head = self.states(blocks), self.refiner_head
        shared, known = head.read(states), targets.tokens[:, : 2 - self.ahead]
        before = [targets.tokens[:, :-1]]
        if self.rounds:
            before += [self.before(known, own) for own in self.refined(states, shared, known, self.rounds - 1)]
        factors = [head(shared, one).flatten(0, 1).index_select(0, targets.slots) for one in before]
        factors.append(torch.zeros_like(factors[0]))  # the base
        own = states.flatten(0, 1).index_select(0, targets.slots)  # [targets, hidden]
        values = draft_losses(
            own.expand(len(factors), -1, -1), targets.normed, self.head, losses,
            details=self.position_weights["name"] == "dpace", factors=torch.stack(factors), readout=head.readout.weight,
        )  # fmt: skip
        # D-PACE's weights are each loss's own: they follow the distribution that it is of.
        weights = torch.stack([self.weights(values.ce[step : step + 1], targets) for step in range(len(factors))])
        return grouped((values.losses * weights).sum(1)), grouped(weights.sum(1))

    def before(self, known: Tensor, own: Tensor) -> Tensor:
        """Return the tokens before what each slot proposes, int64 `[blocks, slots]`.

        `own` int64 `[blocks, slots]` are what the slots propose; without `ahead` the first one counts for nothing.
        """
        return torch.cat((known, own[:, 1 - self.ahead : -1]), 1)

    @torch.no_grad()
    def refined(self, states: Tensor, shared: Tensor, known: Tensor, passes: int) -> list[Tensor]:
        """Return what the slots propose after 0 to `passes` passes: the verifier's ids, int64 `[blocks, slots]` each.

        `states` `[blocks, slots, hidden]`, `shared` as `Refiner.read` makes it.
        """
        found: list[list[Tensor]] = [[] for _ in range(passes + 1)]
        size = max(1, PROPOSED // states.shape[1])
        for here, base, start in zip(states.split(size), shared.split(size), known.split(size), strict=True):
            logits = here.flatten(0, 1) @ self.head.weight.t()  # [blocks * slots, draft vocabulary]
            own = self.to_verifier(logits.argmax(-1)).view(here.shape[:2])
            found[0].append(own)
            for one in found[1:]:
                factors = self.refiner_head(base, self.before(start, own)).flatten(0, 1)
                refined = torch.addmm(logits, factors, self.refiner_head.readout.weight.t())
                own = self.to_verifier(refined.argmax(-1)).view(here.shape[:2])
                one.append(own)
        return [torch.cat(one) for one in found]

    def guesses(self, document: Reading, steps: int) -> Tensor:
        """Return the greedy drafts from every place, as they are decoded."""
        count = len(document)
        found = torch.full((count, steps), -1)
        for first in range(1, count, DRAFTED):
            places = torch.arange(first, min(first + DRAFTED, count))
            found[places - 1] = self.drafts(document, places, steps)
        within = torch.arange(count)[:, None] + 1 + torch.arange(steps) < count  # the token before is there
        return torch.where(within, found, -1)

    def draft(self, document: Reading, steps: int) -> Tensor:
        """Return the greedy draft from the last token, int64 `[steps]`: that of `passes` passes."""
        return self.drafts(document, torch.tensor([len(document) - 1]), steps)[0]

    def drafts(self, document: Reading, places: Tensor, steps: int) -> Tensor:
        """Return the greedy drafts of blocks at the anchors `places`, int64 `[blocks, steps]`."""
        states = self.states(blocks_at(document, places, steps + 1 - self.ahead, self.embed_tokens.dtype))
        known = torch.stack([document.ids[places - back] for back in range(1 - self.ahead, -1, -1)], 1)
        return self.refined(states, self.refiner_head.read(states), known, self.passes)[-1][:, 1 - self.ahead :]

    def logits(self, document: Reading, drafted: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits after `drafted`, refined by these tokens.

        Followed one after another they draft as an unlimited number of passes does.
        """
        slots = self.slots if steps is None else steps + 1 - self.ahead
        place = torch.tensor([len(document) - 1])
        states = self.states(blocks_at(document, place, slots, self.embed_tokens.dtype))
        before = torch.cat((document.ids[self.ahead - 2 :], drafted))  # one for each slot up to the one that is asked
        factors = self.refiner_head(self.refiner_head.read(states), before[None])[0, -1]
        return states[0, len(before) - 1] @ self.head.weight.t() + factors @ self.refiner_head.readout.weight.t()


def grouped(values: Tensor) -> Tensor:
    """Return `[3]` for what each pass counts, `[2 + rounds]`: those over the draft's own tokens are added up."""
    return torch.stack([values[0], values[1:-1].sum(), values[-1]])
