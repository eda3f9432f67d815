"""The table of draft models: an algorithm's name and the module that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from specc.core.algorithms import ALGORITHMS, TensorSpec, algorithm
from specc.core.errors import Exit, SpeccError
from specc.train.losses import Head
from specc.train.models.eagle3 import Eagle3

MODELS: Final[Mapping[str, Callable[..., Eagle3]]] = {"eagle3": Eagle3}

if MODELS.keys() != ALGORITHMS.keys():
    raise ImportError(f"half-registered algorithms: {sorted(MODELS.keys() ^ ALGORITHMS.keys())}")


def build(
    draft: Mapping[str, Any],
    verifier: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    embed_tokens: Tensor,
    head: Head,
    d2t: Tensor | None,
) -> Eagle3:
    """Return the draft that the resolved `draft` and `verifier.config` describe, holding `weights`.

    `weights` are the tensors that the layout table marks `trained`; names and shapes are checked against it.
    Parameters take the dtype of `embed_tokens`. `d2t` is the vocabulary map, None for the full vocabulary.
    """
    check_shapes(weights, trained(draft, verifier), "the draft's weights")
    # Made without memory, so that no global random state is touched and nothing is initialised twice.
    with torch.device("meta"):
        model = MODELS[draft["algorithm"]](draft, verifier, embed_tokens=embed_tokens, head=head, d2t=d2t)
    given = {name: tensor.detach().to(embed_tokens.dtype).clone() for name, tensor in weights.items()}
    model.load_state_dict(given, strict=True, assign=True)
    return model


def load(tensors: Mapping[str, Tensor], draft: Mapping[str, Any], verifier: Mapping[str, Any]) -> Eagle3:
    """Return the draft of a whole checkpoint, ready to propose, in the dtype of its `embed_tokens`.

    `tensors` are all that the layout table lists, with `embed_tokens`, `lm_head` and the vocabulary map.
    Raises `SpeccError` for a missing, misnamed or misshapen one.
    """
    check_shapes(tensors, algorithm(draft["algorithm"]).layout(draft, verifier), "the checkpoint")
    # A file's tensors may be aligned to 8 bytes, and some operators then differ in bits.
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    names = [spec.name for spec in trained(draft, verifier)]
    embed = own["embed_tokens.weight"]
    head = Head(own["lm_head.weight"].to(embed.dtype))
    weights = {name: own[name] for name in names}
    return build(draft, verifier, weights, embed_tokens=embed, head=head, d2t=own.get("d2t")).eval()


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
