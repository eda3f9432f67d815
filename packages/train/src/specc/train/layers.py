"""The parts that decoders are made of: norms, rotary embeddings, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specc.core.errors import Exit, SpeccError
from specc.train.losses import wide


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, arXiv:1910.07467), the mean taken in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed `x` `[..., size]` in its dtype."""
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight in the dtype of `x`; the inner values are fp32 or wider."""
    return unit_rms(x, eps) * weight


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) in the dtype of `x`; the inner values are fp32 or wider."""
    values = x.to(wide(x))
    return (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class FrozenInput(torch.autograd.Function):
    """(x * scale) W^T for an `x` that nothing is learnt from.

    The gradient of `scale` by way of that of `x * scale` is a product as large as the layer's own. With G = dy^T x,
    which the gradient of W asks for anyway, dW = G * scale and dscale = sum over outputs of W * G.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        """Return `[rows, outputs]` for `x` `[rows, inputs]`, `scale` `[inputs]` and `weight` `[outputs, inputs]`."""
        ctx.save_for_backward(x, scale, weight)
        return F.linear(x * scale, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `scale` and `weight`."""
        x, scale, weight = ctx.saved_tensors
        product = grads[0].t() @ x  # [outputs, inputs]
        return None, (weight * product).sum(0, dtype=wide(x)).to(scale.dtype), product * scale


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embeddings (Su et al. 2021, arXiv:2104.09864) to `x` `[rows, heads, size]`, in halves."""
    cos, sin = angles
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[rows, hidden]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Rotary:
    """Rotary embeddings of a decoder configuration: `frequencies` fp32 `[head size / 2]`, and a scale of the angles."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.frequencies, self.scale = rotary_frequencies(config)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[rows, 1, head size]` for int64 `positions` `[rows]`."""
        turns = positions[:, None].to(self.frequencies.dtype) * self.frequencies  # [rows, head size / 2]
        both = torch.cat((turns, turns), -1)[:, None]
        return (both.cos() * self.scale).to(dtype), (both.sin() * self.scale).to(dtype)


def rotary_frequencies(config: Mapping[str, Any]) -> tuple[Tensor, float]:
    """Return fp32 frequencies `[head size / 2]` and the scale of the angles, as transformers computes them.

    Raises `SpeccError` for kinds whose frequencies depend on a sequence's length: vLLM chooses one of them
    when it is started, and training cannot know which.
    """
    kind = config["rope_parameters"].get("rope_type", "default")
    if kind in {"dynamic", "longrope"}:
        raise SpeccError(
            f"rotary embeddings of type `{kind}` change with the sequence's length",
            hint="use a verifier with `default`, `linear`, `llama3` or `yarn` rotary embeddings",
            code=Exit.INPUT,
        )
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    with torch.device("cpu"):  # a module made without memory still needs their values
        rotary = LlamaRotaryEmbedding(LlamaConfig(**config))
    return rotary.inv_freq.to(torch.float32).clone(), float(rotary.attention_scaling)
