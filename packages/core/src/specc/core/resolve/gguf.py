"""Facts about a verifier from its GGUF header."""

from __future__ import annotations

from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import digest_of
from specc.core.gguf import GgufHeader, read_header

__all__ = ["chat_template", "read_header", "tokenizer_digest", "verifier_config"]

FAMILIES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def verifier_config(header: GgufHeader) -> dict[str, Any]:
    """Return the tree `verifier.config`; raises `SpeccError` for an architecture that is not in this release."""
    meta = header.metadata
    family = str(meta.get("general.architecture"))
    if family not in FAMILIES:
        known = ", ".join(f"`{name}`" for name in FAMILIES)
        raise SpeccError(f"GGUF files of the architecture `{family}` are not in this release",
                         hint=f"these are: {known}; or name a folder with safetensors")  # fmt: skip

    def get(name: str, default: Any = None) -> Any:
        value = meta.get(f"{family}.{name}", default)
        if value is None:
            raise SpeccError(f"the GGUF file does not say `{family}.{name}`")
        return value

    heads, hidden = int(get("attention.head_count")), int(get("embedding_length"))
    names = {tensor.name for tensor in header.tensors}
    eos = {meta[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id") if key in meta}
    if f"{family}.rope.scaling.type" in meta and meta[f"{family}.rope.scaling.type"] != "none":
        raise SpeccError("GGUF files with scaled rotary embeddings are not in this release",
                         hint="name a folder with safetensors")  # fmt: skip
    return {
        "architecture": FAMILIES[family],
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "head_dim": int(get("attention.key_length", hidden // heads)),
        "intermediate_size": int(get("feed_forward_length")),
        "vocab_size": len(meta.get("tokenizer.ggml.tokens", ())),
        "max_position_embeddings": int(get("context_length")),
        "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(get("rope.freq_base", 10000.0))},
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_ids": sorted(eos),
    }


def chat_template(header: GgufHeader) -> str | None:
    """Return the chat template, None if there is none."""
    return header.metadata.get("tokenizer.chat_template")


def tokenizer_digest(header: GgufHeader) -> str:
    """Return a digest of what decides tokens: all of the tokenizer's metadata but the chat template."""
    return digest_of(
        [
            [key, repr(value)]
            for key, value in sorted(header.metadata.items())
            if key.startswith("tokenizer.") and key != "tokenizer.chat_template"
        ]
    )
