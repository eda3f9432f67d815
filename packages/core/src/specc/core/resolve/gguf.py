"""Facts about a verifier from the header of its GGUF file, as `huggingface` finds them in a folder."""

from __future__ import annotations

from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import digest_of
from specc.core.gguf import GgufHeader, read_header

__all__ = ["chat_template", "read_header", "tokenizer_digest", "verifier_config"]

FAMILIES: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""llama.cpp's names of architectures, and the Hugging Face classes that compute the same."""
PRE_TOKENIZERS: Final = ("gpt-2", "llama-bpe", "qwen2", "smollm")
"""llama.cpp's names of the ways to split text that the stage `verifier` can write down in a `tokenizer.json`."""
FOLDER: Final = "name the model's folder with safetensors, or its hub id"


def verifier_config(header: GgufHeader) -> dict[str, Any]:
    """Return the tree `verifier.config` of the resolved spec; raises `SpeccError` for what is not in this release."""
    meta = header.metadata
    family = str(meta.get("general.architecture"))
    if family not in FAMILIES:
        known = ", ".join(f"`{name}`" for name in FAMILIES)
        raise SpeccError(
            f"GGUF files of the architecture `{family}` are not in this release",
            hint=f"these are: {known}; or {FOLDER}",
        )
    names = {tensor.name for tensor in header.tensors}
    # llama 3.1 and later keep their scaling as a tensor of factors, older models as metadata.
    scaling = meta.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none" or any(name.startswith("rope_f") for name in names):
        raise SpeccError("GGUF files with scaled rotary embeddings are not in this release", hint=FOLDER)
    if any("_exps." in name or "_inp." in name for name in names):
        raise SpeccError("GGUF files with experts are not in this release", hint=FOLDER)

    def get(name: str, kind: type[int] | type[float], default: Any = None) -> Any:
        value = meta.get(f"{family}.{name}", default)
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 1 << 40:
            raise SpeccError(f"`{family}.{name}` is missing in the GGUF file, or no number that it can be", hint=FOLDER)
        return _decimal(value) if kind is float else value

    def token(name: str) -> int | None:
        value = meta.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) else None

    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    _check_tokenizer(header)
    return {
        "architecture": FAMILIES[family],
        "model_type": family,
        "hidden_size": hidden,
        "num_hidden_layers": get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": get("attention.key_length", int, hidden // heads),
        "intermediate_size": get("feed_forward_length", int),
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "max_position_embeddings": get("context_length", int),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", float),
        "rope_parameters": {"rope_type": "default", "rope_theta": get("rope.freq_base", float, 10000.0)},
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": token("bos"),
        "eos_token_ids": sorted({end for end in (token("eos"), token("eot")) if end is not None}),
    }


def chat_template(header: GgufHeader) -> str | None:
    """Return the chat template, None if there is none."""
    template = header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def tokenizer_digest(header: GgufHeader) -> str:
    """Return a digest of what decides tokens: all of the tokenizer's metadata but the chat template."""
    return digest_of(
        [
            [key, repr(value)]  # canonical JSON of 100,000 tokens would take a second
            for key, value in sorted(header.metadata.items())
            if key.startswith("tokenizer.") and key != "tokenizer.chat_template"
        ]
    )


def _check_tokenizer(header: GgufHeader) -> None:
    """Raise `SpeccError` for a tokenizer that the stage `verifier` cannot write down for transformers."""
    meta = header.metadata
    model, split = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if model != "gpt2" or split not in PRE_TOKENIZERS:
        known = ", ".join(f"`{name}`" for name in PRE_TOKENIZERS)
        raise SpeccError(
            f"GGUF tokenizers of the kind `{model}` with `{split}` are not in this release",
            hint=f"these are: `gpt2` with {known}; or {FOLDER}",
        )
    tokens, types, merges = (meta.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    lists = [(tokens, str), (merges, str), (types, int)]
    whole = all(isinstance(items, list) and all(type(item) is kind for item in items) for items, kind in lists)
    if not whole or not tokens or len(tokens) != len(types or ()):
        raise SpeccError("the GGUF file carries no whole tokenizer", hint=FOLDER)


def _decimal(value: float) -> float:
    """Return the number that a person wrote: the file has `1e-05` as the nearest 32-bit float, 9.99999974e-06."""
    return float(f"{value:.7g}")
