"""DFlash2 (Z Lab 2026, github.com/z-lab/dflash): the module as vLLM runs it, and its training step.

DFlash with two additions. Short causal convolutions along the block stand around attention and feed-forward part of
every layer; what they multiply with depends on the token. And of the most probable tokens of each slot, the candidates,
a selector chooses by what the token before is: the score of candidate c after token b is

    logit(c) + sum over the rank of predecessor[b] * (W h) * successor[c].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.algorithms import TensorSpec
from specc.train.losses import wide
from specc.train.models.base import PROPOSED
from specc.train.models.block import Blocks, Sight, Targets
from specc.train.models.dflash import DFlash, Layer


def convolve(x: Tensor, base: Tensor, delta: Tensor) -> Tensor:
    """Return the sum over taps t of (base[t] + delta[t]) * (the slot t before), `[blocks, slots, hidden]`.

    `x` `[blocks, slots, hidden]`, `base` `[taps, hidden]`, `delta` `[blocks, slots, taps, groups]`: what a slot itself
    adds to the kernel, the same for all channels of a group. Nothing is read across a block's start. Two blocks of
    three slots, two taps:

        slot     0  1  2   3  4  5
           0     0  .  .   .  .  .
           1     1  0  .   .  .  .
           2     .  1  0   .  .  .
           3     .  .  .   0  .  .
           4     .  .  .   1  0  .
           5     .  .  .   .  1  0
    """
    slots, groups = x.shape[1], delta.shape[-1]
    out = torch.zeros_like(x)
    for tap, kernel in enumerate(base):
        past = F.pad(x, (0, 0, tap, 0))[:, :slots]  # [blocks, slots, hidden]
        # Two products and no sum of kernels: that would round what is added away in bf16, and be kept for gradients.
        own = past.unflatten(-1, (groups, -1)) * delta[:, :, tap, :, None]  # [blocks, slots, groups, size]
        out = out + past * kernel + own.flatten(-2)
    return out


class Convolution(nn.Module):
    """The convolutions at the input and the output of a part of a layer, whose kernels the input decides."""

    def __init__(self, hidden: int, taps: int, groups: int) -> None:
        super().__init__()
        self.taps = taps
        self.base_kernel = nn.Parameter(torch.zeros(2, taps, hidden))
        self.kernel_projection = nn.Linear(hidden, 2 * taps * groups, bias=False)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the part's input `[blocks, slots, hidden]`, and what its output's kernel is added."""
        delta = self.kernel_projection(x).unflatten(-1, (2, self.taps, -1))  # [blocks, slots, 2, taps, groups]
        return convolve(x, self.base_kernel[0], delta[:, :, 0]), delta[:, :, 1]

    def leave(self, x: Tensor, delta: Tensor) -> Tensor:
        """Return the part's output `[blocks, slots, hidden]`."""
        return convolve(x, self.base_kernel[1], delta)


class ConvolvedLayer(Layer):
    """A decoder layer with convolutions around its two parts; the context's keys and values know nothing of them."""

    def __init__(self, config: Mapping[str, Any], draft: Mapping[str, Any]) -> None:
        super().__init__(config, draft)
        hidden, convolution = config["hidden_size"], draft["convolution"]
        shape = hidden, convolution["kernel"], hidden // convolution["group"]
        self.attention_conv, self.mlp_conv = Convolution(*shape), Convolution(*shape)

    def attend(self, x: Tensor, context: Tensor, sight: Sight) -> Tensor:
        """Return what attention adds, `[blocks * slots, hidden]`."""
        inside, delta = self.attention_conv.enter(x.unflatten(0, (-1, sight.slots)))
        out = self.self_attn(inside.flatten(0, 1), context, sight)
        return self.attention_conv.leave(out.view_as(inside), delta).flatten(0, 1)

    def feed(self, x: Tensor, sight: Sight) -> Tensor:
        """Return what the feed-forward part adds, `[blocks * slots, hidden]`."""
        inside, delta = self.mlp_conv.enter(x.unflatten(0, (-1, sight.slots)))
        return self.mlp_conv.leave(self.mlp(inside), delta).flatten(0, 1)


class Selector(nn.Module):
    """What the token before adds to a candidate's logit, a vector for each token as the one and as the other."""

    def __init__(self, vocabulary: int, hidden: int, rank: int) -> None:
        super().__init__()
        self.hidden_projection = nn.Linear(hidden, rank, bias=False)
        self.predecessor_codebook = nn.Parameter(torch.zeros(vocabulary, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(vocabulary, rank))

    def forward(self, states: Tensor, before: Tensor, candidates: Tensor) -> Tensor:
        """Return `[rows, candidates]`, for states `[rows, hidden]`, tokens `[rows]` and candidates of that shape."""
        context = F.embedding(before, self.predecessor_codebook) * self.hidden_projection(states)  # [rows, rank]
        after = F.embedding(candidates, self.successor_codebook)  # [rows, candidates, rank]
        return (after @ context[..., None])[..., 0]


class DFlash2(DFlash):
    """The draft model; its logits outside the candidates are -inf."""

    layer = ConvolvedLayer

    def __init__(self, draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> None:
        super().__init__(draft, verifier)
        options = draft["selector"]
        self.candidates: int = options["candidates"]
        self.candidate_selector = Selector(verifier["vocab_size"], verifier["hidden_size"], options["rank"])
        self.coefficients = [1.0, options["weight"]]

    @classmethod
    def initial(cls, spec: TensorSpec, random: torch.Generator) -> Tensor:
        """Return a trained tensor's first value, fp32: convolutions change nothing at first."""
        if spec.name.endswith("kernel_projection.weight"):
            return torch.zeros(spec.shape)
        if spec.name.endswith("base_kernel"):
            first = torch.zeros(spec.shape)
            first[:, 0] = 1.0
            return first
        return super().initial(spec, random)

    def terms(self, content: tuple[Blocks, Targets], losses: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return the sums of DFlash's losses and of the selector's, and the sums of their weights."""
        blocks, targets = content
        states = self.states(blocks)
        values = self.compare(states, targets, losses)
        chosen = self.chosen(states, targets)
        both = torch.stack([values.losses[0], chosen])  # [2, targets]
        # D-PACE's weights are each loss's own: they follow the distribution that it is of.
        weights = torch.stack([self.weights(values.ce, targets), self.weights(chosen[None], targets)])
        return (both * weights).sum(1), weights.sum(1)

    def chosen(self, states: Tensor, targets: Targets) -> Tensor:
        """Return -log of the chance that the selector chooses the verifier's token, after the document's own.

        `[targets]`, fp32 at least. Where the token is no candidate it takes the last one's place.
        """
        own = states.flatten(0, 1).index_select(0, targets.slots)  # [targets, hidden]
        before = targets.tokens[:, :-1].flatten()[targets.slots]
        wanted = self.propose(targets.normed)[:, None]  # a soft cap or a scale changes no choice
        found = self.find(own.detach())  # [targets, candidates]
        missing = ~(found == wanted).any(-1)
        found[:, -1] = torch.where(missing, wanted[:, 0], found[:, -1])
        scores = self.score(own, before, found)
        return F.cross_entropy(scores.to(wide(scores)), (found == wanted).to(torch.int64).argmax(-1), reduction="none")

    @torch.no_grad()
    def find(self, states: Tensor) -> Tensor:
        """Return the tokens of the highest logits, int64 `[rows, candidates]`, for states `[rows, hidden]`."""
        chunks = [(chunk @ self.head.weight.t()).topk(self.candidates).indices for chunk in states.split(PROPOSED)]
        return torch.cat(chunks) if chunks else torch.zeros(0, self.candidates, dtype=torch.int64)

    def score(self, states: Tensor, before: Tensor, candidates: Tensor) -> Tensor:
        """Return the candidates' logits with what the selector adds, `[rows, candidates]`."""
        logits: Tensor = CandidateLogits.apply(states, self.head.weight, candidates)  # pyright: ignore[reportAssignmentType] - apply is untyped
        return logits + self.candidate_selector(states, before, candidates)

    def decode(self, states: Tensor, anchors: Tensor) -> Tensor:
        """Return the greedy drafts of blocks, int64 `[blocks, drafted]`: each choice depends on the one before."""
        drafted = states[:, 1:]
        found = self.find(drafted.flatten(0, 1)).unflatten(0, drafted.shape[:2])  # [blocks, drafted, candidates]
        tokens = [anchors]
        for slot in range(drafted.shape[1]):
            best = self.score(drafted[:, slot], tokens[-1], found[:, slot]).argmax(-1, keepdim=True)
            tokens.append(found[:, slot].gather(-1, best)[:, 0])
        return torch.stack(tokens[1:], 1)

    def following(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits `[vocabulary]` of the token after `tokens`, -inf for all but the candidates."""
        state = states[len(tokens), None]
        found = self.find(state)
        logits = torch.full((len(self.head.weight),), float("-inf"), dtype=state.dtype)
        return logits.scatter(0, found[0], self.score(state, tokens[-1:], found)[0])


class CandidateLogits(torch.autograd.Function):
    """Logits of a few tokens of each row.

    The rows of the head that they need are as many numbers as `candidates` states: they are looked up again for the
    gradients, a chunk at a time.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, candidates: Tensor) -> Tensor:
        """Return `[rows, candidates]` for `states` `[rows, hidden]`, a frozen `head` `[vocabulary, hidden]`."""
        ctx.save_for_backward(head, candidates)
        logits = states.new_empty(candidates.shape)
        for chunk, rows, tokens in zip(*(one.split(PROPOSED) for one in (logits, states, candidates)), strict=True):
            torch.bmm(F.embedding(tokens, head), rows[..., None], out=chunk[..., None])
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the states."""
        head, candidates = ctx.saved_tensors
        parts = zip(grads[0].split(PROPOSED), candidates.split(PROPOSED), strict=True)
        found = [(grad[:, None] @ F.embedding(tokens, head))[:, 0] for grad, tokens in parts]
        return torch.cat(found), None, None
