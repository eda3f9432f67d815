"""What training reads of the verifier: its embeddings, its final norm, its head. All frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.train.layers import rms_norm
from specc.train.losses import Head

EMBEDDINGS: Final = "model.embed_tokens.weight"
NORM: Final = "model.norm.weight"
HEAD: Final = "lm_head.weight"
GEMMA: Final = ("gemma", "gemma2", "gemma3", "gemma3_text")
"""Families whose norm multiplies by 1 + weight."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The verifier's ends, in the dtype of the computation.

    `embed_tokens` `[vocabulary, hidden]`; `norm` fp32 `[hidden]`, the factor itself; `head` the rows of the
    draft vocabulary; `full_head` all rows, for the verifier's own choice of a token.
    """

    embed_tokens: Tensor
    norm: Tensor
    eps: float
    head: Head
    full_head: Tensor

    def normed(self, last: Tensor) -> Tensor:
        """Return the verifier's final states `[rows, hidden]` after its norm, given those before it."""
        wide = last.to(torch.promote_types(last.dtype, torch.float32))
        return rms_norm(wide, self.norm, self.eps).to(self.head.weight.dtype)


def read_verifier(folder: Path, config: Mapping[str, Any], d2t: Tensor | None, dtype: torch.dtype) -> Frozen:
    """Read what is needed from a model folder; a missing tensor is an error, never a guess.

    `config` is `verifier.config` of the resolved spec, `d2t` the vocabulary map. Raises `SpeccError` also for
    a norm or a head of another kind than RMSNorm and a plain matrix.
    """
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    raw = raw.get("text_config", raw)
    files = _where(folder)
    for name in ("model.norm.bias", "lm_head.bias"):
        if name in files:
            raise SpeccError(f"the verifier has a tensor `{name}`, which training does not know", where=str(folder),
                             hint="use a verifier with RMSNorm and a head without bias", code=Exit.STAGE)  # fmt: skip
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    embed = _tensor(files, EMBEDDINGS, (vocabulary, hidden), folder).to(dtype)
    norm = _tensor(files, NORM, (hidden,), folder).to(torch.float32)
    if raw.get("model_type") in GEMMA:
        norm = norm + 1
    tied = bool(config["tie_word_embeddings"])
    full = embed if tied else _tensor(files, HEAD, (vocabulary, hidden), folder).to(dtype)
    rows = full if d2t is None else full.index_select(0, torch.arange(len(d2t)) + d2t)
    scale = float(raw.get("logit_scale") or 1.0) / float(raw.get("logits_scaling") or 1.0)
    cap = raw.get("final_logit_softcapping")
    head = Head(rows.contiguous(), scale, None if cap is None else float(cap))
    return Frozen(embed, norm, float(config["rms_norm_eps"]), head, full)


def _where(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _tensor(files: Mapping[str, Path], name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    if name not in files:
        raise SpeccError(f"the verifier has no tensor `{name}`", where=str(folder),
                         hint="training needs the verifier's embeddings, final norm and head by their "
                              "Hugging Face names", code=Exit.STAGE)  # fmt: skip
    with safe_open(files[name], framework="pt") as file:
        # Views of the file may be aligned to 8 bytes only, and some operators then differ in bits.
        tensor: Tensor = file.get_tensor(name).clone()
    if tuple(tensor.shape) != shape:
        raise SpeccError(f"the verifier's tensor `{name}` has shape {list(tensor.shape)}, its configuration says "
                         f"{list(shape)}", where=str(folder), code=Exit.STAGE)  # fmt: skip
    return tensor
