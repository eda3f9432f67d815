"""Whole tensors of a parameter, wherever its ZeRO stage keeps their parts: gradient, fp32 master, optimizer state.

Reading is a collective: every rank asks for the same parameters in the same order. DeepSpeed's own setters do the
writing, save where they fall short: at stage 3 they take no parameter whose size the ranks do not divide, and for
bf16 at stage 1 a gradient that was added up already is not the one that they set.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_grad,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return a parameter's shape, also where ZeRO stage 3 has taken its values away."""
    return getattr(parameter, "ds_shape", parameter.shape)


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient, the mean over the ranks, in fp32; between a backward pass and the engine's step."""
    found: Tensor = safe_get_full_grad(parameter)  # pyright: ignore[reportAssignmentType] - None before a backward pass
    return found.to(torch.float32)


def set_gradient(parameter: nn.Parameter, value: Tensor) -> None:
    """Put another gradient in its place, on every rank the same."""
    accumulated: Tensor | None = getattr(parameter, "_hp_grad", None)
    if accumulated is not None:
        accumulated.copy_(value.reshape(accumulated.shape))
    elif _is_partitioned(parameter):
        safe_set_local_grad(parameter, _part(parameter, value))
    else:
        safe_set_full_grad(parameter, value)


def master(parameter: nn.Parameter) -> Tensor:
    """Return a copy of the fp32 master; of the parameter itself where there is none (stage 0)."""
    found: Tensor | None = safe_get_full_fp32_param(parameter)
    whole = parameter.detach() if found is None else found
    return whole.to(torch.float32).clone().view(shape_of(parameter))


def set_master(parameter: nn.Parameter, value: Tensor) -> None:
    """Set the fp32 master; the parameter that is computed with has the same value, rounded, already."""
    if _is_partitioned(parameter):
        safe_set_local_fp32_param(parameter, _part(parameter, value))
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_fp32_param(parameter, value)


def link_moments(zero: Any) -> None:
    """Let DeepSpeed find the optimizer's state of every parameter, after a step; `zero` is the engine's optimizer.

    It links them after its first step, which at stages 1 and 2 is that of the first group: the others had no state.
    """
    if getattr(zero, "_hp_optimizer_states_linked", False):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def moment(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str) -> Tensor:
    """Return a copy of what AdamW keeps of a parameter: `exp_avg` or `exp_avg_sq`."""
    found: Tensor | None = safe_get_full_optimizer_state(parameter, name)
    whole = optimizer.state[parameter][name] if found is None else found
    return whole.to(torch.float32).clone().view(shape_of(parameter))


def set_moment(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str, value: Tensor) -> None:
    """Set what AdamW keeps of a parameter; there must be such a state already."""
    if _is_partitioned(parameter):
        safe_set_local_optimizer_state(parameter, _part(parameter, value), name)
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_optimizer_state(parameter, value, name)
    else:
        optimizer.state[parameter][name].copy_(value)


def _is_partitioned(parameter: nn.Parameter) -> bool:
    """Tell whether ZeRO stage 3 has this parameter."""
    return hasattr(parameter, "ds_id")


def _part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, filled up with zeros to the size that every rank has."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    part = value.reshape(-1)[size * rank : size * (rank + 1)]
    return torch.nn.functional.pad(part, (0, size - part.numel()))
