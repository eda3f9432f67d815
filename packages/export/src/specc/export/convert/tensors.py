"""The table of a layout applied: a source's tensors and the verifier's become those of the format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree
from specc.core.errors import SpeccError
from specc.core.layouts import Assignment, Ignored, Place
from specc.core.verifiers import EMBEDDING, HEAD
from specc.export.convert.weights import Weights
from specc.export.layout import DTYPES
from specc.export.weights import shared_embedding, verifier_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def assemble(found: Assignment, source: Weights, verifier: Path, config: Tree) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of what is written, sorted by name, and their dtype: the source's own, or fp32 of several.

    `config` is `verifier.config`. Raises `SpeccError` for values that no weight has, for a vocabulary's map that is
    none, and for a tensor that was to be left out and says something.
    """
    import torch

    for name, why in found.ignored.items():
        _check(name, why, source, verifier, config)
    raw = {spec: _joined(spec, places, source) for spec, places in found.taken.items()}
    kind = _dtype(raw)
    tensors: dict[str, Tensor] = {}
    for spec, tensor in raw.items():
        tensors[spec.name] = _cast(spec, tensor, kind)
    for spec, way in found.filled.items():
        if way == "folded":
            tensors[spec.name] = torch.zeros(spec.shape, dtype=kind)
        elif way != "d2t":
            weight = verifier_tensor(verifier, EMBEDDING, config)
            tensors[spec.name] = _cast(spec, weight if way == "weights" else shared_embedding(verifier, config), kind)
    for name, why in found.ignored.items():
        if why.check == "folded":
            _fold(source.tensor(name), tensors)
    if "d2t" in tensors:
        tensors["t2d"] = _map(tensors["d2t"], tensors.get("t2d"), config["vocab_size"])
    return {name: tensors[name].contiguous() for name in sorted(tensors)}, str(kind).removeprefix("torch.")


def _fold(bias: Tensor, tensors: dict[str, Tensor]) -> None:
    """Put what a bias `[hidden]` adds to the input of a first layer without a norm to where it arrives.

    Attention reads it: W(x + b) = Wx + Wb for queries, keys and values; and the residual carries it on.
    """
    name, bias = "layers.0.self_attn", bias.float()
    for one in "qkvo":
        own = tensors[f"{name}.{one}_proj.bias"]
        added = bias if one == "o" else tensors[f"{name}.{one}_proj.weight"].float() @ bias  # [heads * head_dim]
        tensors[f"{name}.{one}_proj.bias"] = (own.float() + added).to(own.dtype)


def _joined(spec: TensorSpec, places: tuple[Place, ...], source: Weights) -> Tensor:
    """Return one of the format's tensors out of a source's, in the source's dtype."""
    import torch

    parts = [source.tensor(place.name).reshape(place.shape) for place in places]
    parts = [
        part if place.take is None else part[slice(*place.take)] for part, place in zip(parts, places, strict=True)
    ]
    if len(parts) == 1 and places[0].expert is None:
        return parts[0].reshape(spec.shape)
    whole = torch.empty(spec.shape, dtype=parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        row = whole if place.expert is None else whole[place.expert]
        (row if place.put is None else row[slice(*place.put)]).copy_(part)
    return whole


def _dtype(raw: dict[TensorSpec, Tensor]) -> torch.dtype:
    import torch

    kinds = {tensor.dtype for spec, tensor in raw.items() if spec.dtype == "draft"}
    (kind,) = kinds if len(kinds) == 1 else {torch.float32}
    return kind if str(kind).removeprefix("torch.") in DTYPES else torch.float32


def _cast(spec: TensorSpec, tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Return a tensor in the dtype that its place has; raises `SpeccError` if its values are not such."""
    import torch

    if spec.dtype == "draft":
        cast = tensor.to(kind)
        if not tensor.is_floating_point() or not bool(torch.isfinite(cast).all()):
            raise SpeccError(f"the tensor for `{spec.name}` holds values that are not finite numbers in {kind}",
                             hint="the file is damaged, or no draft's")  # fmt: skip
        return cast
    if tensor.is_floating_point():
        raise SpeccError(f"the source's `{spec.name}` is of {tensor.dtype}, and should hold whole numbers")
    return tensor.to(torch.bool if spec.dtype == "BOOL" else torch.int64)


def _map(d2t: Tensor, t2d: Tensor | None, size: int) -> Tensor:
    """Return which of `size` tokens have a place in a draft vocabulary, bool `[size]`.

    Draft token i stands for token `i + d2t[i]`. Raises `SpeccError` unless those are tokens, each once and in order,
    and just the ones that a `t2d` marks.
    """
    import torch

    targets = torch.arange(len(d2t)) + d2t
    known = torch.zeros(size, dtype=torch.bool)
    if not bool((targets.diff() > 0).all()) or int(targets[0]) < 0 or int(targets[-1]) >= size:
        raise SpeccError("the source's `d2t` does not map to the verifier's tokens, each once and in order",
                         hint="it should hold offsets: draft token i stands for token i + d2t[i]")  # fmt: skip
    known[targets] = True
    if t2d is not None and not torch.equal(known, t2d):
        raise SpeccError("the source's `t2d` marks other tokens than its `d2t` maps to",
                         hint="the file is damaged, or its two maps are of two drafts")  # fmt: skip
    return known


def _check(name: str, why: Ignored, source: Weights, verifier: Path, config: Tree) -> None:
    """Raise `SpeccError` if a tensor is not what it must be to be left out."""
    import torch

    if why.check in (None, "folded"):
        return
    tensor = source.tensor(name)
    good, must = False, f"only {why.check}"
    match why.check:
        case "zeros":
            good = not bool(tensor.any())
        case "ones":
            good = bool((tensor == 1).all())
        case "verifier":
            names = EMBEDDING if name.startswith("embed") or config["tie_word_embeddings"] else HEAD
            own = verifier_tensor(verifier, names, config)
            good, must = own.shape == tensor.shape and torch.equal(own.to(tensor.dtype), tensor), "the verifier's own"
    if not good:
        raise SpeccError(f"the source's tensor `{name}` would be left out ({why.why}), and is not {must}",
                         hint="it says something that has no place in the format")  # fmt: skip


def report(found: Assignment) -> dict[str, Any]:
    """Return where every tensor is from, and why those of the source that are in none of them are left out."""
    words = {"weights": "the verifier's embeddings", "layer": "what the verifier's embedding layer gives",
             "d2t": "`d2t`", "folded": "`fc.bias`"}  # fmt: skip
    return {
        "taken": {spec.name: [_from(place) for place in places] for spec, places in found.taken.items()},
        "filled": {spec.name: words[way] for spec, way in found.filled.items()},
        "left_out": {name: why.why for name, why in sorted(found.ignored.items())},
    }


def _from(place: Place) -> dict[str, Any]:
    parts = {"rows": list(place.take) if place.take else None, "expert": place.expert,
             "to_rows": list(place.put) if place.put else None}  # fmt: skip
    return {"tensor": place.name, **{key: value for key, value in parts.items() if value is not None}}
