"""Small random drafts in the layouts of other repositories, by those repositories' own names and shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specc.core.files import sha256_file
from specc.core.resolve import source
from specc.export.convert import converted
from stages import make_job, run_here

HIDDEN, INNER, HEADS, GROUPS, SIZE, VOCAB, LAYERS = 64, 96, 2, 1, 32, 384, 8  # vLLM on a CPU takes no heads of 16
"""Heads are not the verifier's own, nor is the feed-forward width: a folder says them itself."""
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "max_position_embeddings": 256, "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS, "num_hidden_layers": 1, "rms_norm_eps": 1e-3, "tie_word_embeddings": False,
    "vocab_size": VOCAB, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


class Draw:
    """Random tensors, the same ones for a seed."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random) * 0.15

    def gain(self, size: int) -> Tensor:
        return torch.rand(size, generator=self.random) + 0.5


def layer(draw: Draw, name: str, *, reads: int = HIDDEN, norms: bool = False, hidden_norm: bool = False,
          input_norm: bool = True) -> dict[str, Tensor]:  # fmt: skip
    """Return a decoder layer's tensors under `name`."""
    found = {
        f"{name}.self_attn.q_proj.weight": draw.matrix(HEADS * SIZE, reads),
        f"{name}.self_attn.k_proj.weight": draw.matrix(GROUPS * SIZE, reads),
        f"{name}.self_attn.v_proj.weight": draw.matrix(GROUPS * SIZE, reads),
        f"{name}.self_attn.o_proj.weight": draw.matrix(HIDDEN, HEADS * SIZE),
        f"{name}.mlp.gate_proj.weight": draw.matrix(INNER, HIDDEN),
        f"{name}.mlp.up_proj.weight": draw.matrix(INNER, HIDDEN),
        f"{name}.mlp.down_proj.weight": draw.matrix(HIDDEN, INNER),
        f"{name}.post_attention_layernorm.weight": draw.gain(HIDDEN),
    }
    for part, there, size in (("input_layernorm", input_norm, HIDDEN), ("hidden_norm", hidden_norm, HIDDEN),
                              ("self_attn.q_norm", norms, SIZE), ("self_attn.k_norm", norms, SIZE)):  # fmt: skip
        if there:
            found[f"{name}.{part}.weight"] = draw.gain(size)
    return found


def vocabulary_map(size: int) -> dict[str, Tensor]:
    """Return the two maps of a draft vocabulary: every third token, or all of them."""
    tokens = torch.arange(size) * (3 if size < VOCAB else 1) + (size < VOCAB)
    known = torch.zeros(VOCAB, dtype=torch.bool)
    known[tokens] = True
    return {"d2t": tokens - torch.arange(size), "t2d": known}


def fused(draw: Draw, first: str, vocabulary: int) -> dict[str, Tensor]:
    return {
        **layer(draw, first, reads=2 * HIDDEN, hidden_norm=True),
        "fc.weight": draw.matrix(HIDDEN, 3 * HIDDEN),
        "norm.weight": draw.gain(HIDDEN),
        "lm_head.weight": draw.matrix(vocabulary, HIDDEN),
        **vocabulary_map(vocabulary),
    }


@dataclass(frozen=True, slots=True)
class Written:
    """A source: its configuration and its tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def into(self, folder: Path, *, form: str = "safetensors") -> Path:
        """Write the folder: `safetensors`, `bin`, or either in two shards (`… shards`)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        kind, _, shards = form.partition(" ")
        names = sorted(self.tensors)
        parts = [names[::2], names[1::2]] if shards else [names]
        stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
        place = {}
        for number, part in enumerate(parts, start=1):
            file = f"{stem}-{number:05}-of-00002.{suffix}" if shards else f"{stem}.{suffix}"
            some = {name: self.tensors[name].contiguous() for name in part}
            save_file(some, folder / file) if kind == "safetensors" else torch.save(some, folder / file)
            place |= dict.fromkeys(part, file)
        if shards:
            (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": place}))
        return folder


def safeailab(vocabulary: int = 96) -> Written:
    """EAGLE-3 of SafeAILab: a `midlayer`, neither embeddings nor `rope_theta`."""
    return Written({**LLAMA, "draft_vocab_size": vocabulary}, fused(Draw(1), "midlayer", vocabulary))


def specforge(vocabulary: int = VOCAB) -> Written:
    """EAGLE-3 of SpecForge: layers read by name, a norm of each state, embeddings of its own, a scaled rotation."""
    ids = {"eagle_aux_hidden_state_layer_ids": [0, 2, 4], "use_aux_hidden_state": True}
    config = {**LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": vocabulary,
              "eagle_config": ids, "fc_norm": True, "rope_theta": 5000.0, "rope_scaling": LLAMA3}  # fmt: skip
    draw = Draw(2)
    norms = {f"fc_norm.{index}.weight": draw.gain(HIDDEN) for index in range(3)}
    return Written(
        config, {**fused(draw, "layers.0", vocabulary), **norms, "embed_tokens.weight": draw.matrix(VOCAB, HIDDEN)}
    )


def modelopt(vocabulary: int = 96) -> Written:
    """EAGLE-3 of ModelOpt: two layers, no `t2d`."""
    flags = {"use_aux_hidden_state": True, "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True,
             "use_mtp_layernorm": False, "next_layer_regular": True, "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
             "parallel_draft_step": 1}  # fmt: skip
    config = {**LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": vocabulary,
              "num_hidden_layers": 2, "head_dim": SIZE, "rope_theta": 500000.0, "eagle_config": flags}  # fmt: skip
    tensors = {**fused(Draw(3), "layers.0", vocabulary), **layer(Draw(4), "layers.1")}
    del tensors["t2d"]
    return Written(config, tensors)


def peagle(vocabulary: int = 96) -> Written:
    """P-EAGLE of AWS: a `midlayer`, plain layers from 1 on, a state for what is not known."""
    config = {**LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": vocabulary, "head_dim": SIZE,
              "num_hidden_layers": 2, "ptd_token_id": 7, "rope_theta": 500000.0, "rope_scaling": LLAMA3}  # fmt: skip
    draw = Draw(5)
    own = {"mask_hidden": draw.matrix(1, 1, 3 * HIDDEN), "embed_tokens.weight": draw.matrix(VOCAB, HIDDEN)}
    return Written(config, {**fused(draw, "midlayer", vocabulary), **layer(draw, "layers.1"), **own})


def block(draw: Draw, count: int, states: int) -> dict[str, Tensor]:
    found = {"fc.weight": draw.matrix(HIDDEN, states * HIDDEN), "hidden_norm.weight": draw.gain(HIDDEN),
             "norm.weight": draw.gain(HIDDEN)}  # fmt: skip
    for index in range(count):
        found |= layer(draw, f"layers.{index}", norms=True)
    return found


QWEN3: dict[str, Any] = {**LLAMA, "model_type": "qwen3", "head_dim": SIZE, "attention_bias": False,
                         "rope_theta": 1000000.0, "layer_types": ["full_attention"] * 2,
                         "num_hidden_layers": 2}  # fmt: skip


def dflash() -> Written:
    """DFlash of z-lab: settings in `dflash_config`, the verifier's embeddings and head."""
    config = {**QWEN3, "architectures": ["DFlashDraftModel"], "block_size": 4, "num_target_layers": LAYERS,
              "dflash_config": {"mask_token_id": 9, "target_layer_ids": [0, 2, 4]}}  # fmt: skip
    return Written(config, block(Draw(6), 2, 3))


def dflash_fused() -> Written:
    """DFlash with queries, keys and values in one matrix, and a window, as newer folders say it."""
    plain = block(Draw(7), 2, 2)
    for index in range(2):
        parts = [plain.pop(f"layers.{index}.self_attn.{one}_proj.weight") for one in "qkv"]
        plain[f"layers.{index}.self_attn.qkv_proj.weight"] = torch.cat(parts)
    config = {**QWEN3, "architectures": ["DFlashDraftModel"], "layer_types": ["sliding_attention"] * 2,
              "sliding_window": 5, "is_causal": False,
              "dflash_config": {"block_size": 4, "mask_token_id": 9, "target_layer_ids": [1, 3]}}  # fmt: skip
    return Written(config, plain)


def dspark(kind: str = "vanilla", verifier: Path | None = None) -> Written:
    """DSpark of DeepSeek: settings at the top, a Markov and a confidence head, copies of the target's ends."""
    rank, draw = 8, Draw(8)
    config = {**QWEN3, "architectures": ["Qwen3DSparkModel"], "block_size": 4, "mask_token_id": 9,
              "target_layer_ids": [-1, 1, 3], "num_anchors": 16, "markov_rank": rank, "markov_head_type": kind,
              "enable_confidence_head": True, "confidence_head_with_markov": True}  # fmt: skip
    tensors = {
        **block(draw, 2, 3),
        "markov_head.markov_w1.weight": draw.matrix(VOCAB, rank),
        "markov_head.markov_w2.weight": draw.matrix(VOCAB, rank),
        "confidence_head.proj.weight": draw.matrix(1, HIDDEN + rank),
        "confidence_head.proj.bias": draw.matrix(1),
    }
    reads = {"gated": ("gate_proj", HIDDEN + rank, rank), "rnn": ("joint_proj", 2 * rank + HIDDEN, 3 * rank)}
    if kind in reads:
        name, wide, out = reads[kind]
        tensors |= {f"markov_head.{name}.weight": draw.matrix(out, wide), f"markov_head.{name}.bias": draw.matrix(out)}
    if verifier is not None:
        ends = load_file(verifier / "model.safetensors")
        tensors |= {"embed_tokens.weight": ends["model.embed_tokens.weight"], "lm_head.weight": ends["lm_head.weight"]}
    return Written(config, tensors)


def eagle() -> Written:
    """EAGLE-1 of SafeAILab: a fusion with a bias of zeros, a layer without its first norm, a copy of the embeddings."""
    draw = Draw(9)
    tensors = {**layer(draw, "layers.0", input_norm=False), "fc.weight": draw.matrix(HIDDEN, 2 * HIDDEN),
               "fc.bias": torch.zeros(HIDDEN), "embed_tokens.weight": draw.matrix(VOCAB, HIDDEN)}  # fmt: skip
    return Written(dict(LLAMA), tensors)


def eagle_biased() -> Written:
    """EAGLE-2 of SafeAILab for a Qwen2: biases of queries, keys and values, and one of the fusion."""
    plain, draw = eagle(), Draw(10)
    biases = {f"layers.0.self_attn.{one}_proj.bias": draw.matrix(size)
              for one, size in (("q", HEADS * SIZE), ("k", GROUPS * SIZE), ("v", GROUPS * SIZE))}  # fmt: skip
    own = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "qkv_bias": True, "sliding_window": 128,
           "use_sliding_window": False}  # fmt: skip
    return Written({**LLAMA, **own}, {**plain.tensors, **biases, "fc.bias": draw.matrix(HIDDEN)})


ALL: Mapping[str, tuple[str, Callable[[], Written]]] = {
    "SafeAILab": ("eagle3", safeailab),
    "SafeAILab, all tokens": ("eagle3", lambda: safeailab(VOCAB)),
    "SpecForge": ("eagle3", specforge),
    "SpecForge, few tokens": ("eagle3", lambda: specforge(96)),
    "ModelOpt": ("modelopt", modelopt),
    "ModelOpt, all tokens": ("modelopt", lambda: modelopt(VOCAB)),
    "P-EAGLE": ("peagle", peagle),
    "P-EAGLE, all tokens": ("peagle", lambda: peagle(VOCAB)),
    "DFlash": ("dflash", dflash),
    "DFlash, fused": ("dflash", dflash_fused),
    "DSpark": ("dspark", dspark),
    "DSpark, gated": ("dspark", lambda: dspark("gated")),
    "DSpark, rnn": ("dspark", lambda: dspark("rnn")),
    "EAGLE-1": ("eagle", eagle),
    "EAGLE-2, biased": ("eagle", eagle_biased),
}
"""Every layout but MTP, in the variants that its repositories publish, by the name that detection gives it."""


def convert(folder: Path, where: Path, verifier: Path, config: Mapping[str, Any], *, tokens: int = 3) -> Path:
    """Run the stage for a folder as the compiler does, in this process; return what it wrote."""
    found = source.find({"convert": str(where)}, Path(), sha256_file, None)
    params = {
        "source": dict(found.facts),
        "verifier": {"name": "small", "revision": None, "files": {"config.json": "1" * 64}, "config": dict(config)},
        "export": {"speculative_tokens": tokens},
        "stages": {"verifier": {"version": 1, "key": "2" * 64, "inputs": {}}},
    }
    files = {f"source/{name}": path for name, path in found.files.items()}
    job = make_job("converted", folder, params, inputs={"verifier": verifier}, files=files)
    run_here(converted, job)
    return Path(job.output)
