"""DSpark (Cheng et al. 2026, github.com/deepseek-ai/DeepSpec): DFlash's block, with a bias and a confidence per token.

The states of a block are DFlash's. To the logits of each slot comes a bias made from the token before the one that it
proposes: in training the document's own, in a draft what the slot before has proposed. So a block is computed at once,
and its tokens are chosen one after another. The confidence is a guess of the chance that a token is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms import TensorSpec, vocabulary_of
from specc.train.losses import wide
from specc.train.models.block import Blocks, Targets
from specc.train.models.calibration import BINS, calibration, tally
from specc.train.models.dflash import DFlash

NARROW: Final = 0.01
"""Standard deviation of the previous token's first embeddings, the format's own: at first there is hardly a bias."""


class MarkovHead(nn.Module):
    """The bias of a token's logits from the token before it: `markov_w2 f(e, h)`, e being `markov_w1` of that token.

    With h the slot's final state, s the recurrent state, which starts at zero, and sigma the logistic function:

        vanilla   f = e
        gated     f = sigma(gate_proj [h; e]) * e
        rnn       g, c, o = joint_proj [s; e; h];  f = tanh o;  s <- sigma(g) s + (1 - sigma(g)) tanh c
    """

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__()
        kind, rank, hidden = draft["markov"]["type"], draft["markov"]["rank"], verifier["hidden_size"]
        self.markov_w1 = nn.Embedding(verifier["vocab_size"], rank)
        self.markov_w2 = nn.Linear(rank, vocabulary_of(draft, verifier), bias=False)
        self.gate_proj = nn.Linear(hidden + rank, rank) if kind == "gated" else None
        self.joint_proj = nn.Linear(2 * rank + hidden, 3 * rank) if kind == "rnn" else None

    def step(self, embeds: Tensor, states: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
        """Return f `[..., rank]` and the next recurrent state of that shape.

        `embeds` and `recurrent` `[..., rank]`, `states` `[..., hidden]`.
        """
        if self.gate_proj is not None:
            return torch.sigmoid(self.gate_proj(torch.cat((states, embeds), -1))) * embeds, recurrent
        if self.joint_proj is not None:
            gate, candidate, out = self.joint_proj(torch.cat((recurrent, embeds, states), -1)).chunk(3, -1)
            gate = torch.sigmoid(gate)
            return torch.tanh(out), gate * recurrent + (1 - gate) * torch.tanh(candidate)
        return embeds, recurrent

    def forward(self, embeds: Tensor, states: Tensor) -> Tensor:
        """Return f of all slots `[blocks, slots, rank]`: `embeds` of that shape, `states` `[blocks, slots, hidden]`."""
        recurrent = torch.zeros_like(embeds[:, 0])
        if self.joint_proj is None:
            return self.step(embeds, states, recurrent)[0]
        found: list[Tensor] = []
        for embed, state in zip(embeds.unbind(1), states.unbind(1), strict=True):
            factor, recurrent = self.step(embed, state, recurrent)
            found.append(factor)
        return torch.stack(found, 1)


class ConfidenceHead(nn.Module):
    """The logit of the chance that a draft token is accepted, from its slot's state and the embedding before it."""

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__()
        self.with_markov: bool = draft["confidence"]["with_markov"]
        self.proj = nn.Linear(verifier["hidden_size"] + draft["markov"]["rank"] * self.with_markov, 1)

    def forward(self, states: Tensor, embeds: Tensor) -> Tensor:
        """Return logits `[targets]`, in fp32 at least as vLLM does, for `states` `[targets, hidden]` and `embeds`."""
        reads = torch.cat((states, embeds), -1) if self.with_markov else states
        kind = wide(reads)
        return F.linear(reads.to(kind), self.proj.weight.to(kind), self.proj.bias.to(kind))[:, 0]


@dataclass(frozen=True, slots=True)
class Worth:
    """The terms' sums of losses and of weights, both `[terms]`; each target's confidence and overlap, `[targets]`."""

    sums: Tensor
    totals: Tensor
    confidence: Tensor
    overlap: Tensor


class DSpark(DFlash):
    """The draft model."""

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__(draft, verifier)
        self.markov_head = MarkovHead(draft, verifier)
        self.confidence_head = None if draft["confidence"] is None else ConfidenceHead(draft, verifier)
        if draft["confidence"] is not None:
            self.coefficients = [*self.coefficients, draft["confidence"]["weight"]]

    @classmethod
    def initial(cls, spec: TensorSpec, random: torch.Generator) -> Tensor:
        """Return a trained tensor's random first value, fp32; biases are zero."""
        if spec.name.endswith(".bias"):
            return torch.zeros(spec.shape)
        if spec.name == "markov_head.markov_w1.weight":
            return torch.randn(spec.shape, generator=random) * NARROW
        return super().initial(spec, random)

    def terms(self, content: tuple[Blocks, Targets], losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the sums of the counted slots' losses, and of the confidence's, and those of their weights."""
        found = self.worth(content, losses)
        return found.sums, found.totals

    def measured(
        self, content: tuple[Blocks, Targets], losses: Mapping[str, float]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return what `terms` returns, and how often a confidence came with which chance of acceptance."""
        found, (_, targets) = self.worth(content, losses), content
        if self.confidence_head is None:
            return found.sums, found.totals, {}
        counted = tally(torch.sigmoid(found.confidence[targets.valid]), found.overlap[targets.valid])
        return found.sums, found.totals, {"confidence": counted}

    def summary(self, measures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the calibration of the confidence."""
        if self.confidence_head is None:
            return {}
        return {"confidence": calibration(measures.get("confidence", torch.zeros(BINS, 3, dtype=torch.float64)))}

    def worth(self, content: tuple[Blocks, Targets], losses: Mapping[str, float]) -> Worth:
        """Compare the biased draft with the verifier, and the confidence with the chance of acceptance.

        That chance is the overlap of both distributions, sum min(p, q) over the draft vocabulary: what a token is
        accepted with at temperature 1 if it is sampled. Nothing is learnt through it. It has its slot's weight.
        """
        blocks, targets = content
        states = self.states(blocks)
        embeds = self.markov_head.markov_w1(before(blocks.tokens, targets.tokens))  # [blocks, slots, rank]
        factors, embeds, own = (
            one.flatten(0, 1).index_select(0, targets.slots)  # [targets, ...]
            for one in (self.markov_head(embeds, states), embeds, states)
        )
        values = self.compare(
            states, targets, losses, details=self.confidence_head is not None, factors=factors[None],
            readout=self.markov_head.markov_w2.weight,
        )  # fmt: skip
        weights = self.weights(values.ce, targets)
        every, confidence = [values.losses[0]], values.overlap.new_zeros(0)
        if self.confidence_head is not None:
            confidence = self.confidence_head(own, embeds)
            rate = values.overlap[0].clamp(0, 1)  # its sum is rounded
            every.append(F.binary_cross_entropy_with_logits(confidence, rate, reduction="none"))
        sums = torch.stack([(one * weights).sum() for one in every])
        return Worth(sums, weights.sum().repeat(len(every)), confidence, values.overlap.flatten())

    def decode(self, states: Tensor, anchors: Tensor) -> Tensor:
        """Return the greedy drafts of blocks, each token biased by the one drafted before; shapes as in `DFlash`."""
        head, newest, found = self.markov_head, anchors, list[Tensor]()
        recurrent = states.new_zeros(len(anchors), head.markov_w1.embedding_dim)
        for slot, here in enumerate(states.unbind(1)):
            factors, recurrent = head.step(head.markov_w1(newest), here, recurrent)
            if slot + self.ahead > 0:
                logits = here @ self.head.weight.t() + head.markov_w2(factors)
                newest = self.to_verifier(logits.argmax(-1))
                found.append(newest)
        return torch.stack(found, 1)

    def following(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after `tokens`, given the block's `states` `[slots, hidden]`."""
        known = tokens if self.ahead else torch.cat((tokens[:1], tokens))  # before each slot up to the one asked for
        embeds, here = self.markov_head.markov_w1(known), states[: len(known)]
        factors = self.markov_head(embeds[None], here[None])[0, -1]
        return here[-1] @ self.head.weight.t() + self.markov_head.markov_w2(factors)


def before(anchors: Tensor, tokens: Tensor) -> Tensor:
    """Return the token before the one that each slot proposes, int64 `[blocks, slots]`.

    `anchors` int64 `[blocks]`; `tokens` int64 `[blocks, slots + 1]` as in `Targets`, where slot k proposes column
    k + 1. A block of three slots at the anchor x_3, which proposes or, in the second drawing, does not:

        slot        0    1    2         slot        0    1    2
        reads       x_3  mask mask      reads       x_3  mask mask
        proposes    x_4  x_5  x_6       proposes    -    x_4  x_5
        before      x_3  x_4  x_5       before      x_3  x_3  x_4
    """
    return torch.cat((anchors[:, None], tokens[:, 1:-1]), 1)
