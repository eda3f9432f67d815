"""Small real verifiers that have an MTP head, by their families' own names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import drafts
from small import CHATML, make_tokenizer
from specc.core.algorithms import algorithm
from specc.core.algorithms.mtp import pieces
from specc.core.resolve.huggingface import config_facts

DRAFT: dict[str, Any] = {"algorithm": "mtp", "steps": 3, "decay": 0.6, "init": None}
SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 128, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "norm_topk_prob": True,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
}  # fmt: skip
"""Sizes of linear attention; vLLM's kernels on a CPU take heads of 128 alone."""
KEEP = {"mimo": 0.6, "qwen3_next": 0.3}
"""How much a head that is right at times repeats what it reads, as its verifier does."""


def make(
    folder: Path, family: str, *, dtype: str = "float32", head: bool = True, layers: Sequence[str] = ("full_attention",)
) -> Path:
    """Write a random verifier, of the family `mimo` or `qwen3_next`, that repeats itself; its head too, if asked for.

    MiMo's folder says `qwen2`, which is its body: `mimo` is known to nobody but the code in its repository.
    Qwen3-Next has `layers` in turn: vLLM's kernels for linear attention have no fp32 on a CPU.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

    tokenizer = make_tokenizer(folder, CHATML)
    ends = {"bos_token_id": tokenizer.token_to_id("<|im_start|>"), "eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    torch.manual_seed(0)
    if family == "mimo":
        model: Any = Qwen2ForCausalLM(Qwen2Config(vocab_size=384, tie_word_embeddings=True, **SIZES, **ends))
    else:
        model = Qwen3NextForCausalLM(
            Qwen3NextConfig(
                vocab_size=384, layer_types=[*islice(cycle(layers), 4)], **EXPERTS, **LINEAR, **SIZES, **ends
            )
        )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    drafts.calm(folder)
    path, raw = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    raw["num_nextn_predict_layers"] = 1
    if family == "mimo":
        raw["architectures"] = ["MiMoForCausalLM"]
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    tensors = load_file(path)
    tensors["model.norm.weight"] += torch.rand(64, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    if family != "mimo":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if head:
        tensors |= named(family, folder, random_head(family, folder, seed=7, keep=0.0), dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def facts(family: str, folder: Path) -> dict[str, Any]:
    """Return `verifier.config` of the resolved spec for such a folder."""
    raw = json.loads((folder / "config.json").read_text()) | {"model_type": family}
    found = config_facts(lambda name: json.dumps(raw).encode() if name == "config.json" else None)
    return found | (EXPERTS if family != "mimo" else {}) | {"num_nextn_predict_layers": 1}


def random_head(family: str, folder: Path, *, seed: int, keep: float) -> dict[str, Any]:
    """Return a head by the format's names that, as much as `keep` says, goes on with the state or token it reads."""
    import torch

    draw, found = torch.Generator().manual_seed(seed), {}
    for spec in algorithm("mtp").layout(DRAFT, facts(family, folder)):
        if spec.name.endswith("norm.weight"):
            found[spec.name] = torch.rand(spec.shape, generator=draw) * 0.2 + (family == "mimo")
        elif spec.name.endswith("input_proj.weight"):
            same = torch.eye(64) * keep
            found[spec.name] = torch.randn(spec.shape, generator=draw) * 0.1 + torch.cat((same, same), 1)
        else:
            small = 0.03 if "o_proj" in spec.name or "down_proj" in spec.name else 0.2
            found[spec.name] = torch.randn(spec.shape, generator=draw) * small
    return found


def named(family: str, folder: Path, head: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a head's tensors by the verifier's names, in its dtype."""
    import torch

    found = {}
    for name, parts in pieces(facts(family, folder), ()).items():
        for piece in parts:
            whole = head[name] if piece.expert is None else head[name][piece.expert]
            part = whole[slice(*piece.rows)] if piece.rows else whole
            found[piece.name] = part.to(getattr(torch, dtype)).contiguous()
    return found


def checkpoint(folder: Path, family: str, verifier: Path, *, dtype: str = "float32", **draft: Any) -> Path:
    """Write a checkpoint of a random head that is right at times, and return its folder."""
    from safetensors.torch import save_file

    from specc.export.checkpoint import write_weights, write_words

    values = resolved(family, verifier, dtype=dtype, **draft)
    (folder / "output").mkdir(parents=True)
    (folder / "draft").mkdir()
    save_file(random_head(family, verifier, seed=8, keep=KEEP[family]), folder / "draft" / "model.safetensors")
    weights = folder / "output" / "model.safetensors"
    write_weights(values, weights, draft=folder / "draft", verifier=verifier, vocabulary=None)
    write_words(values, folder / "output")
    return folder / "output"


def resolved(family: str, verifier: Path, *, dtype: str = "float32", **draft: Any) -> dict[str, Any]:
    """Return a resolved spec for such a verifier."""
    values = drafts.resolved(verifier, **DRAFT | draft)
    values["verifier"] |= {"config": facts(family, verifier), "dtype": dtype}
    values["export"]["dtype"] = dtype
    return values
