"""The optimizer's groups and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from specc.core.errors import Exit, SpeccError
from specc.train.muon import Muon


def make_optimizer(model: nn.Module, options: Mapping[str, Any], directed: Collection[str]) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) or Muon over the parameters; norms do not decay.

    `directed` names the matrices whose directions Muon takes.
    """
    if options["name"] == "muon":
        names = dict(model.named_parameters())
        others = [parameter for name, parameter in names.items() if name not in directed]
        return Muon([names[name] for name in names if name in directed], others, options)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    if options["name"] != "adamw":
        raise SpeccError(f"no optimizer `{options['name']}`", hint="`train.optimizer.name` takes `adamw` or `muon`",
                         code=Exit.INPUT)  # fmt: skip
    groups = [{"params": matrices, "weight_decay": options["weight_decay"]}, {"params": norms, "weight_decay": 0.0}]
    # One pass over the state in place of a dozen.
    return torch.optim.AdamW(
        groups, lr=options["learning_rate"], betas=tuple(options["betas"]), eps=options["eps"], fused=True
    )


def learning_rate(step: int, total: int, peak: float, schedule: Mapping[str, Any]) -> float:
    """Return the learning rate of the optimizer step `step` of `total`, from 0.

    `schedule.warmup` is a share of all steps if below 1, else a number of steps. The first step is
    already a share of the peak, and the last decaying one is above zero: no step is wasted on a rate of 0.
    """
    warmup = schedule["warmup"]
    steps = round(warmup * total) if warmup < 1 else int(warmup)
    if step < steps:
        return peak * (step + 1) / steps
    share = (step - steps) / max(1, total - steps)  # [0, 1)
    name = schedule["name"]
    if name == "constant":
        return peak
    if name == "linear":
        return peak * (1 - share)
    if name == "cosine":
        return peak * (1 + math.cos(math.pi * share)) / 2
    raise SpeccError(f"no schedule `{name}`", hint="`train.schedule.name` takes `linear`, `cosine` or `constant`",
                     code=Exit.INPUT)  # fmt: skip
