"""A resolved spec as plain values, for tests of what comes after resolving."""

from __future__ import annotations

import copy
from typing import Any

VALUES: dict[str, Any] = {
    "version": 1,
    "name": "tiny",
    "date": "2026-01-02",
    "verifier": {
        "model": "./tiny", "name": "tiny", "revision": None, "dtype": "bfloat16", "trust_remote_code": False,
        "format": "huggingface", "files": {"config.json": "aa" * 32, "model.safetensors": "bb" * 32},
        "tokenizer_sha256": "cc" * 32, "chat_template_sha256": "dd" * 32,
        "config": {
            "architecture": "LlamaForCausalLM", "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
            "vocab_size": 384, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True,
            "bos_token_id": 1, "eos_token_ids": [2],
        },
    },
    "draft": {
        "algorithm": "eagle3", "layers": 1, "decoder": "llama", "vocabulary": 128, "hidden_state_layers": [2, 3, 4],
        "norm_before_residual": True, "norm_before_fc": True, "fc_norm": False, "norm_output": True,
        "sliding_window": None, "intermediate_size": 128, "ttt": {"steps": 3, "decay": 1.0}, "init": None,
    },
    "data": {
        "sources": [{"file": "prompts.jsonl", "sha256": "ee" * 32, "rows": None}], "system_prompt": None,
        "responses": {"from": "verifier", "temperature": 0.0, "top_p": 1.0, "max_tokens": 16, "seed": 0},
        "sequence_length": 128, "validation": {"share": 0.1, "sources": []}, "shuffle": True,
        "shuffle_window": 32, "shard_rows": 8,
    },
    "train": {
        "epochs": 1, "steps": None, "batch_tokens": 256,
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
        "schedule": {"name": "linear", "warmup": 0.01}, "loss": {"kl": 1.0}, "precision": "bf16",
        "gradient_clipping": 1.0, "zero": {"stage": 1}, "seed": 42, "save_every": 200,
    },
    "export": {"speculative_tokens": 3, "dtype": "bfloat16"},
    "evaluate": {"prompts": [{"file": "held-out.jsonl", "sha256": "ff" * 32, "rows": None}], "max_tokens": 16,
                 "lossless_prompts": 2},
    "checks": None,
    "runtime": {"threads": 2, "datagen": {"workers": 1}, "train": {"ranks": 1}},
}  # fmt: skip


def values(**changes: Any) -> dict[str, Any]:
    """Return a copy with dotted paths changed: `values(**{"train.seed": 7})`."""
    tree = copy.deepcopy(VALUES)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = tree
        for part in parents:
            node = node[part]
        node[last] = value
    return tree
