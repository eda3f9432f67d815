"""Losses of draft distributions against the verifier's, without a `[positions, vocabulary]` tensor.

With p the verifier's distribution over the draft vocabulary, q the draft's, and m = (p + q) / 2, in nats:

    kl  = KL(p || q) = sum p (log p - log q)        ce  = -log q[argmax p]
    rkl = KL(q || p)                                tv  = 1 - sum min(p, q)
    jsd = KL(p || m) / 2 + KL(q || m) / 2           nla = -log max(sum min(p, q), 1e-5)
    lk  = w kl + (1 - w) tv,  w = exp(-3 sum min(p, q)) taken as a constant

sum min(p, q) is the chance that a sampled draft token is accepted (Leviathan et al. 2023, arXiv:2211.17192, theorem
3.5); nla and lk are from Samarin et al. 2026, arXiv:2602.23881.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from specc.core.errors import Exit, SpeccError

CHUNK: Final = 64
"""Targets whose logits exist at once: few enough to stay in a core's cache, enough for full matrix products."""
BYTES: Final = 2**26
"""Memory of a chunk's logits, the verifier's and those of all steps. Large vocabularies have smaller chunks for it: in
fp32 and with three steps those of more than 65,536 tokens."""

LOSSES: Final = ("kl", "rkl", "jsd", "ce", "tv", "nla", "lk")
LEAST: Final = 1e-5
"""Overlap below which nla is level."""
SHARPNESS: Final = 3.0
"""How fast lk goes over from kl to tv as the overlap grows."""


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


@dataclass(frozen=True, slots=True)
class LossValues:
    """What the draft's distributions are worth, each `[steps, targets]`, or `[steps, 0]` where nobody asked for it.

    `losses` (fp32 at least) are the weighted sums and have a gradient. `tokens` (int64) are the draft's most probable
    tokens, in the draft vocabulary; `overlap` is sum min(p, q), and `ce` -log q[argmax p].
    """

    losses: Tensor
    tokens: Tensor
    overlap: Tensor
    ce: Tensor


def draft_losses(
    states: Tensor,
    normed: Tensor,
    head: Head,
    weights: Mapping[str, float],
    *,
    picks: bool = False,
    details: bool = False,
    factors: Tensor | None = None,
    readout: Tensor | None = None,
) -> LossValues:
    """Return the losses of every step's draft distribution for every target, each counted by its weight.

    `states` `[steps, targets, hidden]` are the draft's final states, `normed` `[targets, hidden]` the verifier's, both
    in the dtype of `head.weight`. With `factors` `[steps, targets, rank]` and `readout` `[draft vocabulary, rank]` the
    draft's logits are `states W^T + factors readout^T`; the verifier's are not changed. Gradients go to `states`,
    `factors` and `readout`. `picks` asks for the tokens, `details` for `overlap` and `ce`.
    """
    if (factors is None) != (readout is None):
        raise TypeError("`factors` and `readout` are given together")
    return LossValues(*ChunkedLosses.apply(states, normed, head, weights, picks, details, factors, readout))  # pyright: ignore[reportArgumentType] - apply is untyped


class ChunkedLosses(torch.autograd.Function):
    """`draft_losses`, with the gradients of the states made in the same pass over the vocabulary.

    The head is frozen: what remains of the pass is one gradient per state, and the backward pass scales its rows. A
    readout is not. Its gradient is a sum over all rows, each scaled by a gradient that only the backward pass knows:
    then the logits are made a second time there, since keeping them is what this is here to avoid.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any,
        states: Tensor,
        normed: Tensor,
        head: Head,
        weights: Mapping[str, float],
        picks: bool,
        details: bool,
        factors: Tensor | None,
        readout: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `LossValues` holds."""
        steps, targets, _ = states.shape
        rows = Pass(states, normed, head, weights, factors=factors, readout=readout)
        losses = states.new_zeros(steps, targets, dtype=wide(states))
        tokens = states.new_zeros(steps, targets if picks else 0, dtype=torch.int64)
        overlap, ce = (losses.new_zeros(steps, targets if details else 0) for _ in range(2))
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] and readout is None else None
        for here, target, ours in rows.chunks(labels="ce" in weights or details):
            for step, one in enumerate(ours):
                if picks:
                    tokens[step, here] = one.argmax(-1)
                found = rows.compare(target, one, details=details)
                losses[step, here] = found.loss
                if details:
                    overlap[step, here], ce[step, here] = found.overlap, found.ce
                if grads is not None:
                    one.copy_(rows.slopes(target, found))
            if grads is not None:
                grads[:, here] = (ours.flatten(0, 1) @ head.weight).view(grads[:, here].shape)
        ctx.rows = None if readout is None else (head, weights)
        ctx.save_for_backward(*((grads,) if readout is None else (states, normed, factors, readout)))
        ctx.mark_non_differentiable(tokens, overlap, ce)
        return losses, tokens, overlap, ce

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides names
        """Scale each row's gradient by its loss's, and sum up the readout's."""
        if ctx.rows is None:
            (slopes,) = ctx.saved_tensors
            return (slopes * grads[0][..., None]).to(slopes.dtype), *[None] * 7
        states, normed, factors, readout = ctx.saved_tensors
        head, weights = ctx.rows
        rows = Pass(states, normed, head, weights, factors=factors, readout=readout)
        of_states, of_factors, of_readout = (
            torch.zeros_like(one, dtype=dtype) if needed else None
            for one, dtype, needed in (
                (states, states.dtype, ctx.needs_input_grad[0]),
                (factors, factors.dtype, ctx.needs_input_grad[6]),
                (readout, wide(readout), ctx.needs_input_grad[7]),
            )
        )
        for here, target, ours in rows.chunks(labels="ce" in weights):
            for step, one in enumerate(ours):
                slopes = rows.slopes(target, rows.compare(target, one)).mul_(grads[0][step, here, None])
                if of_readout is not None:
                    of_readout.addmm_(slopes.t(), factors[step, here].to(slopes.dtype))
                one.copy_(slopes)
            for found, weight in ((of_states, head.weight), (of_factors, readout)):
                if found is not None:
                    found[:, here] = (ours.flatten(0, 1) @ weight).view(found[:, here].shape)
        of_readout = None if of_readout is None else of_readout.to(readout.dtype)
        return of_states, *[None] * 5, of_factors, of_readout


class Pass:
    """The distributions of verifier and draft, one chunk of targets after another.

    The draft's logits of all steps for one target share its p, so p is computed once for all of them. Everything
    as wide as the vocabulary is written into the same few buffers again and again, where caches hold it: new memory
    for each costs more than what is computed in it.
    """

    def __init__(
        self,
        states: Tensor,
        normed: Tensor,
        head: Head,
        weights: Mapping[str, float],
        *,
        factors: Tensor | None,
        readout: Tensor | None,
    ) -> None:
        self.states, self.normed, self.head, self.weights = states, normed, head, weights
        self.low_rank = None if factors is None or readout is None else (factors, readout)
        steps, targets, _ = states.shape
        size = len(head.weight)
        self.chunk = chunk_of(steps, size, states.element_size())
        rows = min(self.chunk, targets)
        self.raw = states.new_empty((steps + 1) * rows, size)  # logits, and later their slopes
        log_p, score = ("rkl" in weights) * rows, ("rkl" in weights or "jsd" in weights) * rows
        self.p, self.spare, self.q, self.log_p, self.score = (
            states.new_empty(count, size, dtype=wide(states)) for count in (rows, rows, rows, log_p, score)
        )

    def chunks(self, *, labels: bool) -> Iterator[tuple[slice, Target, Tensor]]:
        """Yield each chunk: its place, its targets, and the draft's logits `[steps, chunk, vocabulary]`.

        They are good until the next one.
        """
        steps, targets, _ = self.states.shape
        for start in range(0, targets, self.chunk):
            here = slice(start, start + self.chunk)
            inputs = torch.cat((self.normed[None, here], self.states[:, here]))  # [1 + steps, chunk, hidden]
            count = inputs.shape[1]
            raw = self.raw[: (steps + 1) * count]
            torch.mm(inputs.flatten(0, 1), self.head.weight.t(), out=raw)
            if self.low_rank is not None:
                factors, readout = self.low_rank
                raw[count:].addmm_(factors[:, here].flatten(0, 1), readout.t())
            theirs = self.spare[:count].copy_(self.head.verifier_logits(raw[:count]))
            target = Target.of(theirs, self.p[:count], self.log_p[:count], labels=labels)
            yield here, target, raw[count:].view(steps, count, -1)

    def compare(self, target: Target, logits: Tensor, *, details: bool = False) -> Comparison:
        """Compare a step's distribution, by the draft's logits `[targets, vocabulary]`, with the verifier's."""
        kl, rkl, jsd, ce, tv, nla, lk = (self.weights.get(name, 0.0) for name in LOSSES)
        spare, q, score = (buffer[: len(logits)] for buffer in (self.spare, self.q, self.score))
        partition = _softmax(spare.copy_(logits), q)
        loss = torch.zeros_like(partition)
        mean, divergence, overlap, surprise = (loss.new_empty(0) for _ in range(4))
        if ce or details:
            surprise = partition - spare.gather(-1, target.label)[:, 0]
            loss += ce * surprise
        if rkl or jsd:
            torch.sub(spare, partition[:, None], out=score).mul_(rkl + jsd / 2)  # of log q
        if kl or lk:
            divergence = target.negentropy + partition - spare.mul_(target.p).sum(-1)
            loss += kl * divergence
        if rkl:
            score.sub_(target.log_p, alpha=rkl)
        if jsd:
            # Where p and q are both 0, log m counts for nothing, and need only be finite.
            log_m = torch.add(target.p, q, out=spare).mul_(0.5).clamp_(min=torch.finfo(q.dtype).tiny).log_()
            score.sub_(log_m, alpha=jsd / 2)
            loss += jsd / 2 * (target.negentropy - log_m.mul_(target.p).sum(-1))
        if rkl or jsd:
            mean = torch.mul(q, score, out=spare).sum(-1)
            loss += mean
        if tv or nla or lk or details:
            overlap = torch.minimum(target.p, q, out=spare).sum(-1)
        if tv:
            loss += tv * (1 - overlap)
        if nla:
            loss -= nla * overlap.clamp(min=LEAST).log()
        if lk:
            share = _share(overlap)
            loss += lk * (share * divergence + (1 - share) * (1 - overlap))
        return Comparison(loss, overlap, surprise, q, score, mean)

    def slopes(self, target: Target, found: Comparison) -> Tensor:
        """Return the loss's derivative by the draft's logits `[targets, vocabulary]`, in the place of `found.q`.

        A loss whose derivative by q is g has the derivative q (g - sum q g) by the logits:

            kl    g = -p / q                  q - p
            ce    g = -onehot / q             q - onehot
            rkl   g = log q - log p           q (g - sum q g)
            jsd   g = (log q - log m) / 2     q (g - sum q g)
            tv    g = -[q < p]                q (sum q [q < p] - [q < p])
            nla                               tv's / sum min(p, q), and 0 where that is below 1e-5
            lk                                w kl's + (1 - w) tv's

        Where q = p, tv has no derivative, and this is one of its subgradients.
        """
        kl, rkl, jsd, ce, tv, nla, lk = (self.weights.get(name, 0.0) for name in LOSSES)
        q, spare, overlap = found.q, self.spare[: len(found.q)], found.overlap[:, None]
        of_kl: float | Tensor = kl
        of_tv: float | Tensor = tv
        if nla:
            of_tv = of_tv + nla * (overlap >= LEAST) / overlap.clamp(min=LEAST)
        if lk:
            share = _share(overlap)
            of_kl, of_tv = of_kl + lk * share, of_tv + lk * (1 - share)
        factor = of_kl + ce
        if tv or nla or lk:
            torch.lt(q, target.p, out=spare).mul_(q)
            factor = factor + of_tv * spare.sum(-1, keepdim=True)
        if rkl or jsd:
            factor = found.score.add_(factor - found.mean[:, None])
        if isinstance(factor, Tensor) or factor != 1:
            q.mul_(factor)
        if tv or nla or lk:
            _subtract(q, spare, of_tv)
        if kl or lk:
            _subtract(q, target.p, of_kl)
        if ce:
            q.scatter_add_(-1, target.label, torch.full_like(target.label, -ce, dtype=q.dtype))
        return q


def chunk_of(steps: int, vocabulary: int, size: int) -> int:
    """Return how many targets are compared at once, with logits of `size` bytes each."""
    return max(1, min(CHUNK, BYTES // ((steps + 1) * vocabulary * size)))


@dataclass(frozen=True, slots=True)
class Target:
    """The verifier's distribution: `p` `[targets, vocabulary]`, sum p log p `[targets]`, argmax p `[targets, 1]`.

    `log_p` is as large as `p`, or empty if nobody asks for it; so is the label.
    """

    p: Tensor
    log_p: Tensor
    negentropy: Tensor
    label: Tensor

    @classmethod
    def of(cls, logits: Tensor, p: Tensor, log_p: Tensor, *, labels: bool) -> Target:
        """Make it in `p` and, unless that is empty, `log_p`; `logits` are used up."""
        partition = _softmax(logits, p)
        label = logits.argmax(-1, keepdim=True) if labels else logits.new_empty(0, dtype=torch.int64)
        if len(log_p):
            torch.sub(logits, partition[:, None], out=log_p)
        return cls(p, log_p, logits.mul_(p).sum(-1) - partition, label)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The weighted sum of the losses `[targets]`, and what their slopes are made from.

    `overlap` is sum min(p, q) and `ce` -log q[argmax p], both `[targets]`. `score`, as large as `q` `[targets,
    vocabulary]`, is the derivative of rkl and jsd by q, each times its weight, and `mean` `[targets]` is sum q score.
    What nobody asks for is empty.
    """

    loss: Tensor
    overlap: Tensor
    ce: Tensor
    q: Tensor
    score: Tensor
    mean: Tensor


def _softmax(logits: Tensor, out: Tensor) -> Tensor:
    """Write probabilities `[rows, vocabulary]`, and return the logits' log-sum-exp `[rows]`."""
    torch.softmax(logits, -1, out=out)
    return logits.amax(-1) - out.amax(-1).log()


def _share(overlap: Tensor) -> Tensor:
    """Return the share of kl in lk."""
    return torch.exp(-SHARPNESS * overlap)


def _subtract(q: Tensor, other: Tensor, weight: float | Tensor) -> None:
    """Subtract `other`, as large as `q`, times a weight of all rows or of each one `[rows, 1]`."""
    if isinstance(weight, Tensor):
        q.addcmul_(other, weight, value=-1)
    else:
        q.sub_(other, alpha=weight)
