"""The weights that training starts from: an earlier speculator's, or random ones."""

from __future__ import annotations

import json
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage
from specc.train.determinism import stream
from specc.train.models import check_shapes, trained

SPREAD: Final = 0.02
"""Standard deviation of random matrices, Llama's `initializer_range`."""


def initial_weights(stage: Stage) -> dict[str, Tensor]:
    """Return the trained tensors' first values, fp32: `draft.init`'s, or drawn from `train.seed`."""
    draft, config = stage.params["draft"], stage.params["verifier"]["config"]
    if draft["init"] is not None:
        return _earlier(stage)
    # A stream for each tensor: the order of the layout, or a tensor more, does not change the others.
    return {
        spec.name: torch.ones(spec.shape)
        if len(spec.shape) == 1
        else torch.randn(spec.shape, generator=stream(stage.params["train"]["seed"], "draft", spec.name)) * SPREAD
        for spec in trained(draft, config)
    }


def _earlier(stage: Stage) -> dict[str, Tensor]:
    """Read an earlier speculator; raises `SpeccError` where its configuration or its shapes are others."""
    draft, config = stage.params["draft"], stage.params["verifier"]["config"]
    names = sorted(draft["init"]["files"])
    before: dict[str, Any] = json.loads(stage.file("init/config.json").read_text())
    expected = {
        "speculators_model_type": draft["algorithm"],
        "norm_before_residual": draft["norm_before_residual"],
        "norm_before_fc": draft["norm_before_fc"],
        "fc_norm": draft["fc_norm"],
        "norm_output": draft["norm_output"],
        "eagle_aux_hidden_state_layer_ids": draft["hidden_state_layers"],
    }
    for key, value in expected.items():
        if before.get(key) != value:
            raise SpeccError(f"the speculator in `draft.init` has `{key}` {json.dumps(before.get(key))} and the "
                             f"draft {json.dumps(value)}", where="draft.init",
                             hint="make the spec's `draft` section the same, or start from random weights",
                             code=Exit.INPUT)  # fmt: skip
    found: dict[str, Tensor] = {}
    for name in names:
        if name.endswith(".safetensors"):
            found |= load_file(stage.file(f"init/{name}"))
    table = trained(draft, config)
    weights = {spec.name: found[spec.name].to(torch.float32).clone() for spec in table if spec.name in found}
    check_shapes(weights, table, "the speculator in `draft.init`")
    return weights
