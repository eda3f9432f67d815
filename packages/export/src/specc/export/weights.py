"""Bring a checkpoint's tensors together: the draft's own, the verifier's rows, the vocabulary map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from specc.core.algorithms import algorithm
from specc.core.algorithms.base import Tree
from specc.core.errors import Exit, SpeccError
from specc.core.files import tensor_headers
from specc.core.verifiers import EMBEDDING, HEAD, find_tensor
from specc.export.layout import require

if TYPE_CHECKING:
    from torch import Tensor


def gather(params: Tree, draft: Path, verifier: Path, vocabulary: Path | None) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint's layout, in the export's dtype, sorted by name.

    `draft` is the draft stage's artifact (F32), `verifier` a Hugging Face folder, `vocabulary` the map's
    artifact, None for the full vocabulary. The head is the verifier's, its rows picked by the map. Raises
    `SpeccError` for a draft that does not fit the layout or is not finite, and for a map that is none.
    """
    import torch
    from safetensors.torch import load_file

    config = params["verifier"]["config"]
    layout = algorithm(params["draft"]["algorithm"]).layout(params["draft"], config)
    dtype: torch.dtype = getattr(torch, params["export"]["dtype"])
    trained_file = draft / "model.safetensors"
    trained = [spec for spec in layout if spec.origin == "trained"]
    require(trained, tensor_headers(trained_file), "float32", where=str(trained_file))

    tensors = {name: tensor.to(dtype) for name, tensor in load_file(trained_file).items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise SpeccError(f"the trained tensor `{name}` holds values that are not finite", where=str(trained_file),
                             hint="lower `train.optimizer.learning_rate`, or set `train.gradient_clipping`",
                             code=Exit.STAGE)  # fmt: skip

    wanted = {spec.name for spec in layout}
    rows: Tensor | None = None
    if vocabulary is not None:
        d2t, t2d = vocabulary_map(vocabulary / "vocabulary.safetensors", config["vocab_size"])
        tensors |= {"d2t": d2t, "t2d": t2d}
        rows = torch.arange(d2t.shape[0]) + d2t
    # A tied head is a tensor of its own here: the format has no sharing.
    if "embed_tokens.weight" in wanted:
        tensors["embed_tokens.weight"] = shared_embedding(verifier, config).to(dtype)
    if "lm_head.weight" in wanted:
        head = verifier_tensor(verifier, EMBEDDING if config["tie_word_embeddings"] else HEAD, config)
        tensors["lm_head.weight"] = (head if rows is None else head[rows]).to(dtype, copy=True)
    return {name: tensors[name].contiguous() for name in sorted(tensors)}


def shared_embedding(verifier: Path, config: Tree) -> Tensor:
    """Return the embeddings `[vocabulary, hidden]` that the draft was trained with, in the weights' dtype.

    Where the verifier's embedding layer multiplies, they are the products, rounded as it does. They differ from its
    weights then, so that vLLM leaves the draft these and does not share the layer, which multiplies in vLLM's
    Transformers backend and does not in its own classes.
    """
    import torch

    weight, factor = verifier_tensor(verifier, EMBEDDING, config), config.get("embedding_scale")
    return weight if factor is None else weight * torch.tensor(factor, dtype=weight.dtype)


def verifier_tensor(folder: Path, names: tuple[str, ...], config: Tree) -> Tensor:
    """Return the matrix `[vocabulary, hidden]` that a Hugging Face folder has by one of `names`.

    `config` is `verifier.config`. Raises `SpeccError` if it has none, or one of another shape or kind.
    """
    from safetensors import safe_open

    path, name = find_tensor(folder, names, (config["vocab_size"], config["hidden_size"]))
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def vocabulary_map(path: Path, size: int) -> tuple[Tensor, Tensor]:
    """Return `d2t` int64 `[draft vocabulary]` and `t2d` bool `[size]`; raises `SpeccError` if they disagree.

    Draft token i stands for verifier token `i + d2t[i]`; those must be different tokens, in order, and just
    the ones that `t2d` marks.
    """
    import torch
    from safetensors.torch import load_file

    found = load_file(path)
    d2t, t2d = found["d2t"], found["t2d"]
    targets = torch.arange(d2t.shape[0]) + d2t
    if t2d.shape != (size,) or not torch.equal(targets, t2d.nonzero().flatten()):
        raise SpeccError("the vocabulary map's `d2t` and `t2d` do not name the same tokens", where=str(path),
                         hint="build the stage `vocabulary` again", code=Exit.STAGE)  # fmt: skip
    return d2t, t2d
