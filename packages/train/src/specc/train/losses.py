"""Losses of draft distributions against the verifier's, without a `[positions, vocabulary]` tensor.

With p the verifier's distribution over the draft vocabulary and q the draft's, in nats:

    kl = sum p (log p - log q)      ce = -log q[argmax p]      tv = 1 - sum min(p, q)

tv is the chance that a sampled draft token is rejected (Leviathan et al. 2023, arXiv:2211.17192, theorem 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from specc.core.errors import Exit, SpeccError

CHUNK: Final = 64
"""Targets whose logits exist at once: few enough to stay in a core's cache, enough for full matrix products."""

LOSSES: Final = ("kl", "ce", "tv")


@dataclass(frozen=True, slots=True)
class Head:
    """The verifier's head on the draft vocabulary: `weight` `[draft vocabulary, hidden]`, frozen.

    The verifier's logits are `cap * tanh(scale * h W^T / cap)`: Cohere and Granite scale, Gemma 2 caps. The
    draft's are plain, as vLLM computes them.
    """

    weight: Tensor
    scale: float = 1.0
    cap: float | None = None

    def verifier_logits(self, raw: Tensor) -> Tensor:
        """Return the verifier's logits, in at least fp32, for its final, normed states times the weight."""
        if self.scale == 1.0 and self.cap is None:
            return raw
        logits = raw.to(wide(raw)) * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def check_losses(weights: Mapping[str, float | None]) -> dict[str, float]:
    """Return the losses that have a weight; raises `SpeccError` for one that is not in the table."""
    for name in weights:
        if name not in LOSSES:
            known = ", ".join(f"`{loss}`" for loss in LOSSES)
            raise SpeccError(f"no loss `{name}`", hint=f"`train.loss` takes {known}", code=Exit.INPUT)
    return {name: weight for name, weight in weights.items() if weight}


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums over values like `tensor`'s: fp32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


class DraftLoss(torch.autograd.Function):
    """Losses of every (step, target), their gradients made in the same pass over the vocabulary.

    The draft's logits of all steps for one target share its p, so p is computed once for all of them. The head
    is frozen: what remains of the pass is one gradient per state, and the backward pass scales its rows. Everything
    as wide as the vocabulary is written into the same few buffers again and again, where caches hold it: new memory
    for each costs more than what is computed in it.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, states: Tensor, normed: Tensor, head: Head, weights: Mapping[str, float], picks: bool
    ) -> tuple[Tensor, Tensor]:
        """Return losses `[steps, targets]`, and with `picks` the draft's tokens `[steps, targets]` (int64).

        `states` `[steps, targets, hidden]` are the draft's final states, `normed` `[targets, hidden]` the
        verifier's, and `weights` what each loss counts for.
        """
        steps, targets, hidden = states.shape
        size = len(head.weight)
        losses = torch.zeros(steps, targets, dtype=wide(states))
        tokens = torch.zeros(steps, targets if picks else 0, dtype=torch.int64)
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        raw = states.new_empty((steps + 1) * min(CHUNK, targets), size)  # logits, and later their slopes
        p, logits, q = (torch.empty(min(CHUNK, targets), size, dtype=losses.dtype) for _ in range(3))
        for start in range(0, targets, CHUNK):
            here = slice(start, start + CHUNK)
            inputs = torch.cat((normed[None, here], states[:, here]))  # [1 + steps, chunk, hidden]
            count = inputs.shape[1]
            p, logits, q, raw = p[:count], logits[:count], q[:count], raw[: (steps + 1) * count]
            torch.mm(inputs.flatten(0, 1), head.weight.t(), out=raw)
            theirs, *ours = raw.view(-1, count, size)
            target = Target.of(logits.copy_(head.verifier_logits(theirs)), p, labels="ce" in weights)
            for step, one in enumerate(ours):
                if picks:
                    tokens[step, here] = one.argmax(-1)
                losses[step, here] = _losses(target, logits.copy_(one), q, weights)
                if grads is not None:
                    one.copy_(_slopes(target, q, weights, spare=logits))
            if grads is not None:
                grads[:, here] = (raw[count:] @ head.weight).view(steps, count, hidden)
        ctx.save_for_backward(grads)
        ctx.mark_non_differentiable(tokens)
        return losses, tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale each state's gradient by its loss's."""
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0][..., None]).to(slopes.dtype), None, None, None, None


@dataclass(frozen=True, slots=True)
class Target:
    """The verifier's distribution: `p` `[targets, vocabulary]`, sum p log p `[targets]`, argmax p `[targets, 1]`."""

    p: Tensor
    negentropy: Tensor
    label: Tensor

    @classmethod
    def of(cls, logits: Tensor, p: Tensor, *, labels: bool) -> Target:
        """Make it in `p`; `logits` are used up. It has no labels if nobody asks for them."""
        partition = _softmax(logits, p)
        label = logits.argmax(-1, keepdim=True) if labels else logits.new_empty(0, dtype=torch.int64)
        return cls(p, logits.mul_(p).sum(-1) - partition, label)


def _softmax(logits: Tensor, out: Tensor) -> Tensor:
    """Write probabilities `[rows, vocabulary]`, and return the logits' log-sum-exp `[rows]`."""
    torch.softmax(logits, -1, out=out)
    return logits.amax(-1) - out.amax(-1).log()


def _losses(target: Target, logits: Tensor, q: Tensor, weights: Mapping[str, float]) -> Tensor:
    """Return the weighted losses `[targets]`, and q in `q`; the draft's `logits` are used up."""
    partition = _softmax(logits, q)
    total = torch.zeros_like(partition)
    if weight := weights.get("ce"):
        total += weight * (partition - logits.gather(-1, target.label)[:, 0])
    if weight := weights.get("kl"):
        total += weight * (target.negentropy + partition - logits.mul_(target.p).sum(-1))
    if weight := weights.get("tv"):
        total += weight * (1 - torch.minimum(target.p, q, out=logits).sum(-1))
    return total


def _slopes(target: Target, q: Tensor, weights: Mapping[str, float], *, spare: Tensor) -> Tensor:
    """Return the losses' derivative by the draft's logits, in the place of `q`; `spare` is as large, and used.

    For logits z: dkl/dz = q - p, dce/dz = q - onehot, dtv/dz = -q (m - sum m q) with m = [q < p].
    """
    kl, ce, tv = (weights.get(name, 0.0) for name in LOSSES)
    if tv:
        mq = torch.mul(q, q < target.p, out=spare)
        q.mul_(kl + ce + tv * mq.sum(-1, keepdim=True)).sub_(mq, alpha=tv)
    elif kl + ce != 1:
        q.mul_(kl + ce)
    if kl:
        q.sub_(target.p, alpha=kl)
    if ce:
        q.scatter_add_(-1, target.label, torch.full_like(target.label, -ce, dtype=q.dtype))
    return q
