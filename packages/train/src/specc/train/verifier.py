"""What training reads of the verifier: its embeddings, its final norm, its head. All frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.core.verifiers import EMBEDDING, HEAD, NORM, find_tensor
from specc.train.layers import rms_norm
from specc.train.losses import Head, wide


@dataclass(frozen=True, slots=True)
class Frozen:
    """The verifier's ends, in the dtype of the computation.

    `embed_tokens` `[vocabulary, hidden]` is what a draft that shares the verifier's embedding layer reads of it: the
    weights times `embedding_scale`, 1 for all but Gemma. `norm` fp32 `[hidden]` is the final norm's factor itself,
    and `centred` whether it takes the mean away (LayerNorm). `head` has the rows of the draft vocabulary, `full_head`
    all of them, for the verifier's own choice of a token.
    """

    embed_tokens: Tensor
    norm: Tensor
    eps: float
    head: Head
    full_head: Tensor
    centred: bool = False
    embedding_scale: float = 1.0

    def normed(self, last: Tensor) -> Tensor:
        """Return the verifier's final states `[rows, hidden]` after its norm, given those before it."""
        states = last.to(wide(last))
        if self.centred:
            states = states - states.mean(-1, keepdim=True)
        return rms_norm(states, self.norm, self.eps).to(self.head.weight.dtype)


def read_verifier(folder: Path, config: Mapping[str, Any], d2t: Tensor | None, dtype: torch.dtype) -> Frozen:
    """Read what is needed from a model folder; a missing tensor is an error, never a guess.

    `config` is `verifier.config` of the resolved spec, which alone says what kind of norm and head it has; `d2t` is
    the vocabulary map. Raises `SpeccError` for tensors that are not as it says, and for a kind that it does not know.
    """
    vocabulary, hidden, kind = config["vocab_size"], config["hidden_size"], config.get("norm", "rms")
    if kind not in {"rms", "gemma", "layernorm"}:
        raise SpeccError(
            f"the verifier has a final norm of the kind `{kind}`, which training does not know",
            hint="the lock is of another release: `specc lock --upgrade verifier SPEC`",
            code=Exit.STAGE,
        )
    weight = _tensor(folder, EMBEDDING, (vocabulary, hidden))
    embed = weight.to(dtype)
    full = embed if config["tie_word_embeddings"] else _tensor(folder, HEAD, (vocabulary, hidden)).to(dtype)
    # As the model does: the factor is rounded to the weights' dtype, and so is the product.
    factor = torch.tensor(config.get("embedding_scale", 1.0), dtype=weight.dtype)
    norm = _tensor(folder, NORM, (hidden,)).to(torch.float32)
    rows = full if d2t is None else full.index_select(0, torch.arange(len(d2t)) + d2t)
    return Frozen(
        embed_tokens=embed if factor == 1 else (weight * factor).to(dtype),
        norm=norm + 1 if kind == "gemma" else norm,
        eps=float(config["rms_norm_eps"]),
        head=Head(rows.contiguous(), config.get("logit_scale", 1.0), config.get("logit_softcap")),
        full_head=full,
        centred=kind == "layernorm",
        embedding_scale=float(factor),
    )


def _tensor(folder: Path, names: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
    """Return one of the verifier's tensors, as it is stored."""
    path, name = find_tensor(folder, names, shape)
    with safe_open(path, framework="pt") as file:
        # Views of the file may be aligned to 8 bytes only, and some operators then differ in bits.
        return file.get_tensor(name).clone()
