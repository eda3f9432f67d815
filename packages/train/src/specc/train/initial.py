"""The weights that training starts from: an earlier speculator's, a converted one's, the verifier's, or random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from specc.core.algorithms import algorithm
from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage
from specc.train.determinism import stream
from specc.train.models import check_shapes, initial, native, trained

FREE: Final = ("draft_vocab_size", "embed_requires_grad", "target_hidden_size")
"""Fields in which a speculator to start from may differ: what is learnt has nothing of them."""


def initial_weights(stage: Stage) -> dict[str, Tensor]:
    """Return the trained tensors' first values, fp32: `draft.init`'s, the verifier's, or drawn from `train.seed`."""
    draft, config = stage.params["draft"], stage.params["verifier"]["config"]
    if draft["init"] is not None:
        return _earlier(stage)
    if (own := native(draft, config, stage.input("verifier"))) is not None:
        return own
    # A stream for each tensor: the order of the layout, or a tensor more, does not change the others.
    seed = stage.params["train"]["seed"]
    return {
        spec.name: initial(draft, config, spec, stream(seed, "draft", spec.name)) for spec in trained(draft, config)
    }


def _earlier(stage: Stage) -> dict[str, Tensor]:
    """Read an earlier speculator; raises `SpeccError` where its configuration or its shapes are others."""
    draft, config = stage.params["draft"], stage.params["verifier"]["config"]
    row, files = algorithm(draft["algorithm"]), _files(stage)
    before: dict[str, Any] = json.loads(files["config.json"].read_text())
    expected = {"speculators_model_type": draft["algorithm"], **row.fields(draft)}
    for key, value in expected.items():
        found = before.get(key, row.absent.get(key))
        if key not in FREE and found != value:
            raise SpeccError(f"the speculator in `draft.init` has `{key}` {json.dumps(found)} and the "
                             f"draft {json.dumps(value)}", where="draft.init",
                             hint="make the spec's `draft` section the same, or start from random weights",
                             code=Exit.INPUT)  # fmt: skip
    if before.get("embed_requires_grad"):
        stage.warn(
            "the speculator in `draft.init` was trained with embeddings of its own, and gets the verifier's here"
        )
    tensors: dict[str, Tensor] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            tensors |= load_file(files[name])
    table = trained(draft, config)
    weights = {spec.name: tensors[spec.name].to(torch.float32).clone() for spec in table if spec.name in tensors}
    check_shapes(weights, table, "the speculator in `draft.init`")
    return weights


def _files(stage: Stage) -> dict[str, Path]:
    """Return the files of the speculator to start from by their names; warn of what a converted one has besides."""
    if "converted" not in stage.job.inputs:
        return {name: stage.file(f"init/{name}") for name in stage.params["draft"]["init"]["files"]}
    folder = stage.input("converted")
    own: list[str] = json.loads((folder / "conversion.json").read_text())["own"]
    differs: dict[str, Any] = json.loads((folder / "specc.json").read_text())["resolved"]["decoder"]
    if own:
        stage.warn(f"the converted draft has {' and '.join(f'`{name}`' for name in own)} of its own, and gets the"
                   " verifier's here")  # fmt: skip
    if names := [name for name in ("rms_norm_eps", "rope_parameters") if name in differs]:
        stage.warn(f"the converted draft was trained with {' and '.join(f'`{name}`' for name in names)} of its own, and"
                   " goes on with the verifier's")  # fmt: skip
    return {name: folder / name for name in ("config.json", "model.safetensors")}
