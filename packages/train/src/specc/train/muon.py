"""Muon: matrices move along their orthogonalised momentum, everything else by AdamW (Jordan et al. 2024).

Embeddings and heads are AdamW's, as in both of the sources below.

ZeRO hands an optimizer flat pieces of parameters, and a matrix is orthogonalised whole or not at all. So the gradient
of each matrix is made whole, replaced by its direction, and put back before DeepSpeed's step, which for these
parameters is then a plain descent. All ZeRO stages thus compute one update. Source: kellerjordan.github.io/posts/muon;
the scale of an update, by which learning rates and weight decay are those of AdamW, is Liu et al. 2025
(arXiv:2502.16982, equation 4).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from specc.train.whole import gradient, set_gradient

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, whose iteration brings singular values to about 1."""
ITERATIONS: Final = 5
SMALLEST: Final = 1e-7
"""Norm below which a matrix is taken for zero."""


class Muon(torch.optim.AdamW):
    """Descends along gradients that are directions already where a group has a `scale`; AdamW for the others."""

    def __init__(self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], options: Mapping[str, Any]):
        by_scale = defaultdict[float, list[nn.Parameter]](list)
        for matrix in matrices:
            by_scale[scale_of(matrix.shape)].append(matrix)
        groups: list[dict[str, Any]] = [
            {"params": found, "scale": scale, "weight_decay": options["weight_decay"]}
            for scale, found in sorted(by_scale.items())
        ]
        groups.append({"params": list(others), "scale": None, "weight_decay": 0.0})
        super().__init__(
            groups, lr=options["learning_rate"], betas=tuple(options["betas"]), eps=options["eps"], fused=True
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do one step; DeepSpeed calls it with one group at a time, or with all."""
        groups = self.param_groups
        for group in groups:
            if (scale := group["scale"]) is not None:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.mul_(1 - group["lr"] * group["weight_decay"])
                        parameter.add_(parameter.grad, alpha=-group["lr"] * scale)
        self.param_groups = [group for group in groups if group["scale"] is None]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class Directions:
    """The momenta of the `directed` matrices, fp32 and the same on every rank, and what becomes of their gradients.

    `names` are all parameters.
    """

    def __init__(
        self,
        names: Mapping[str, nn.Parameter],
        directed: Collection[str],
        momentum: float,
        clipping: float | None,
        *,
        watched: bool = False,
    ) -> None:
        """Take the momentum and the norm to clip at; `watched` asks for the norm where there is none."""
        self.names, self.directed, self.momentum, self.clipping = names, directed, momentum, clipping
        self.watched = watched
        self.norm: float | None = None
        """Of the last gradients before clipping, if it was asked for or clipped by."""
        self.buffers: dict[str, Tensor] = {}
        """By the parameter's name, `[rows, columns]`; empty before the first step."""

    def apply(self) -> None:
        """Clip the gradients' common norm, then put its direction in the place of each matrix's gradient.

        To be called between the backward pass and DeepSpeed's step, by every rank.
        """
        factor = 1.0
        if self.clipping is not None or self.watched:
            norm = norm_of(self.names.values())
            self.norm = float(norm)
            if self.clipping is not None:  # as torch.nn.utils.clip_grad_norm_ has it
                factor = float((self.clipping / (norm + 1e-6)).clamp(max=1.0))
        for name, parameter in self.names.items():
            if name not in self.directed and factor == 1.0:
                continue
            whole = gradient(parameter) * factor
            if name in self.directed:
                buffer = self.buffers.setdefault(name, torch.zeros_like(whole))
                buffer.lerp_(whole, 1 - self.momentum)
                whole = orthogonal(whole.lerp(buffer, self.momentum))
            set_gradient(parameter, whole)


def norm_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together, fp32; every rank asks."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient(one)) for one in parameters]))


def scale_of(shape: torch.Size) -> float:
    """Return what a matrix's update is multiplied with, so that its elements are as large as AdamW's."""
    return 0.2 * math.sqrt(max(shape))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return U V^T of `matrix` = U S V^T, nearly: bf16 `[rows, columns]`, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.t()).to(torch.bfloat16)
    x = x / x.norm().clamp(min=SMALLEST)  # singular values of at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.t()
