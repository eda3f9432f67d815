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

    def verifier_log_probs(self, normed: Tensor) -> Tensor:
        """Return log p `[targets, draft vocabulary]` in at least fp32 for final, normed states `[targets, hidden]`."""
        logits = normed @ self.weight.t()
        if self.scale == 1.0 and self.cap is None:
            return log_softmax(logits)
        return log_softmax(self.shape(logits))

    def shape(self, logits: Tensor) -> Tensor:
        """Apply the verifier's scale and cap to raw logits, in at least fp32."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def check_losses(weights: Mapping[str, float | None]) -> dict[str, float]:
    """Return the losses that have a weight; raises `SpeccError` for one that is not in the table."""
    for name in weights:
        if name not in LOSSES:
            known = ", ".join(f"`{loss}`" for loss in LOSSES)
            raise SpeccError(f"no loss `{name}`", hint=f"`train.loss` takes {known}", code=Exit.INPUT)
    return {name: weight for name, weight in weights.items() if weight}


def log_softmax(logits: Tensor) -> Tensor:
    """Return log probabilities over the last dimension in at least fp32."""
    return torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


class DraftLoss(torch.autograd.Function):
    """Losses of every (step, target), their gradients made in the same pass over the vocabulary.

    The draft's logits of all steps for one target share its p, so p is computed once for all of them. The head
    is frozen: what remains of the pass is one gradient per state, and the backward pass scales its rows.
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
        wide = torch.promote_types(states.dtype, torch.float32)
        losses = torch.zeros(steps, targets, dtype=wide)
        tokens = torch.zeros(steps, targets if picks else 0, dtype=torch.int64)
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, targets, CHUNK):
            here = slice(start, start + CHUNK)
            log_p = head.verifier_log_probs(normed[here])  # [chunk, vocabulary]
            h = states[:, here].reshape(-1, hidden)  # [steps * chunk, hidden]
            log_q = log_softmax(h @ head.weight.t()).view(steps, *log_p.shape)
            if picks:
                tokens[:, here] = log_q.argmax(-1)
            slopes = _score(log_p, log_q, weights, losses[:, here], slopes=grads is not None)
            if grads is not None and slopes is not None:
                flat = slopes.flatten(0, 1).to(states.dtype)
                grads[:, here] = (flat @ head.weight).view(steps, -1, hidden)
        ctx.save_for_backward(grads)
        ctx.mark_non_differentiable(tokens)
        return losses, tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale each state's gradient by its loss's."""
        (slopes,) = ctx.saved_tensors
        return (slopes * grads[0][..., None]).to(slopes.dtype), None, None, None, None


def _score(
    log_p: Tensor, log_q: Tensor, weights: Mapping[str, float], losses: Tensor, *, slopes: bool
) -> Tensor | None:
    """Add to `losses` `[steps, chunk]`; return their derivative by the logits `[steps, chunk, vocabulary]`.

    For logits z: dkl/dz = q - p, dce/dz = q - onehot, dtv/dz = -q (m - sum m q) with m = [q < p].
    """
    p = log_p.exp()
    q = log_q.exp() if slopes or "tv" in weights else None
    total: Tensor | None = None
    for name, weight in weights.items():
        slope: Tensor | None = None
        if name == "kl":
            entropy = torch.linalg.vecdot(p, log_p)  # sum p log p, [chunk]
            losses += weight * (entropy - torch.linalg.vecdot(p.expand_as(log_q), log_q))
            slope = q - p if slopes and q is not None else None
        elif name == "ce":
            label = log_p.argmax(-1).expand(log_q.shape[:-1])[..., None]  # [steps, chunk, 1]
            losses -= weight * log_q.gather(-1, label)[..., 0]
            if slopes and q is not None:
                slope = q.scatter_add(-1, label, torch.full_like(label, -1, dtype=q.dtype))
        elif q is not None:  # tv
            losses += weight * (1 - torch.minimum(p, q).sum(-1))
            if slopes:
                mq = torch.where(q < p, q, 0.0)
                slope = q * mq.sum(-1, keepdim=True) - mq
        if slope is not None:
            slope = slope if weight == 1.0 else slope * weight
            total = slope if total is None else total.add_(slope)
    return total
