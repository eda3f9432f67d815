"""The table of draft models: an algorithm's name and the module that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from specc.core.algorithms import ALGORITHMS, TensorSpec, algorithm
from specc.core.errors import Exit, SpeccError
from specc.train.models.base import DraftModel
from specc.train.models.dflash import DFlash
from specc.train.models.dflash2 import DFlash2
from specc.train.models.dspark import DSpark
from specc.train.models.eagle3 import Eagle3
from specc.train.models.mtp import Mtp
from specc.train.models.peagle import Peagle
from specc.train.models.xpress import XPress
from specc.train.verifier import Frozen

MODELS: Final[Mapping[str, type[DraftModel]]] = {
    "eagle3": Eagle3,
    "dflash": DFlash,
    "peagle": Peagle,
    "dflash2": DFlash2,
    "xpress": XPress,
    "mtp": Mtp,
    "dspark": DSpark,
}

if MODELS.keys() != ALGORITHMS.keys():
    raise ImportError(f"half-registered algorithms: {sorted(MODELS.keys() ^ ALGORITHMS.keys())}")


def build(
    draft: Mapping[str, Any],
    verifier: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    frozen: Frozen,
    d2t: Tensor | None,
) -> DraftModel:
    """Return the draft that the resolved `draft` and `verifier.config` describe, holding `weights`.

    `weights` are the tensors that the layout table marks `trained`; names and shapes are checked against it.
    Parameters take the dtype of the verifier's parts. `d2t` is the vocabulary map, None for the full vocabulary.
    """
    check_shapes(weights, trained(draft, verifier), "the draft's weights")
    # Made without memory, so that no global random state is touched and nothing is initialised twice.
    with torch.device("meta"):
        model: DraftModel = MODELS[draft["algorithm"]](draft, verifier)
    model.share(frozen, d2t)
    given = {name: tensor.detach().to(frozen.embed_tokens.dtype).clone() for name, tensor in weights.items()}
    model.load_state_dict(given, strict=True, assign=True)
    return model


def load(
    tensors: Mapping[str, Tensor], draft: Mapping[str, Any], verifier: Mapping[str, Any], frozen: Frozen
) -> DraftModel:
    """Return the draft of a whole checkpoint, ready to propose, in the dtype of the verifier's parts.

    `tensors` are all that the layout table lists. Embeddings and a head that are among them go before those of
    `frozen`, which was read with the checkpoint's vocabulary map. Raises `SpeccError` for a missing, misnamed or
    misshapen one.
    """
    check_shapes(tensors, algorithm(draft["algorithm"]).layout(draft, verifier), "the checkpoint")
    # A file's tensors may be aligned to 8 bytes, and some operators then differ in bits.
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    dtype = frozen.embed_tokens.dtype
    if (embed := own.get("embed_tokens.weight")) is not None:
        frozen = replace(frozen, embed_tokens=embed.to(dtype))
    if (head := own.get("lm_head.weight")) is not None:
        frozen = replace(frozen, head=replace(frozen.head, weight=head.to(dtype)))
    weights = {spec.name: own[spec.name] for spec in trained(draft, verifier)}
    return build(draft, verifier, weights, frozen, own.get("d2t")).eval()


def initial(draft: Mapping[str, Any], verifier: Mapping[str, Any], spec: TensorSpec, random: torch.Generator) -> Tensor:
    """Return a trained tensor's random first value, fp32."""
    return MODELS[draft["algorithm"]].initial(spec, random)


def native(draft: Mapping[str, Any], verifier: Mapping[str, Any], folder: Path) -> dict[str, Tensor] | None:
    """Return the trained tensors as the verifier in `folder` has them, fp32; None for a draft that it has not."""
    return MODELS[draft["algorithm"]].native(draft, verifier, folder)


def trained(draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> list[TensorSpec]:
    """Return the tensors that training makes, in the layout's order."""
    table = algorithm(draft["algorithm"]).layout(draft, verifier)
    return [spec for spec in table if spec.origin == "trained"]


def check_shapes(tensors: Mapping[str, Tensor], table: list[TensorSpec], what: str) -> None:
    """Raise `SpeccError` unless `tensors` are exactly those of the `table`."""
    hint = "the spec's `draft` section must describe the same shapes as the weights"
    for spec in table:
        if spec.name not in tensors:
            raise SpeccError(f"tensor `{spec.name}` is missing from {what}", hint=hint, code=Exit.STAGE)
        shape = tuple(tensors[spec.name].shape)
        if shape != spec.shape:
            raise SpeccError(
                f"tensor `{spec.name}` of {what} has shape {list(shape)} and needs {list(spec.shape)}",
                hint=hint,
                code=Exit.STAGE,
            )
    if extra := sorted(tensors.keys() - {spec.name for spec in table}):
        raise SpeccError(f"tensor `{extra[0]}` of {what} is not one of the draft's", hint=hint, code=Exit.STAGE)
