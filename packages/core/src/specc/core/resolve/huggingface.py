"""Facts about a verifier from its `config.json` and tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import digest_of, sha256

FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Dense families whose final norm has the gain `w` and whose logits are neither scaled nor capped, so that the
training targets are what the verifier computes."""

Reader = Callable[[str], bytes | None]
"""Returns a file's bytes, or None if the model has no such file."""


def config_facts(read: Reader) -> dict[str, Any]:
    """Return the tree `verifier.config`; raises `SpeccError` for families whose targets would be wrong."""
    raw = _json(read, "config.json")
    family = raw.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(f"`{name}`" for name in sorted(FAMILIES))
        raise SpeccError(
            f"verifiers of the family `{family}` are not in this release",
            hint=f"these are: {known}; others have norms or logits that the training targets must honour first",
        )
    generation = _json(read, "generation_config.json", optional=True)
    try:
        heads = int(raw["num_attention_heads"])
        eos = generation.get("eos_token_id", raw.get("eos_token_id"))
        return {
            "architecture": raw["architectures"][0],
            "model_type": family,
            "hidden_size": int(raw["hidden_size"]),
            "num_hidden_layers": int(raw["num_hidden_layers"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(raw.get("num_key_value_heads") or heads),
            "head_dim": int(raw.get("head_dim") or raw["hidden_size"] // heads),
            "intermediate_size": int(raw["intermediate_size"]),
            "vocab_size": int(raw["vocab_size"]),
            "max_position_embeddings": int(raw["max_position_embeddings"]),
            "rms_norm_eps": float(raw["rms_norm_eps"]),
            "rope_parameters": _rope(raw),
            "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
            "bos_token_id": raw.get("bos_token_id"),
            "eos_token_ids": [] if eos is None else sorted(eos) if isinstance(eos, list) else [eos],
        }
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SpeccError(f"the verifier's `config.json` lacks or garbles {error}") from error


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary parameters in the form of transformers 5, from either form."""
    if rope := raw.get("rope_parameters"):
        return {"rope_type": "default", **rope}
    scaling = dict(raw.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.pop("rope_type", None) or "default"
    scaling.pop("rope_type", None)
    return {"rope_type": kind, "rope_theta": float(raw.get("rope_theta", 10000.0)), **scaling}


def tokenizer_digest(read: Reader) -> str:
    """Return a digest of what decides tokens: the tokenizer and its configuration less its chat template."""
    tokenizer = read("tokenizer.json")
    if tokenizer is None:
        raise SpeccError(
            "the verifier has no `tokenizer.json`",
            hint="save it once as a fast tokenizer: `AutoTokenizer.from_pretrained(…).save_pretrained(…)`",
        )
    config = {key: value for key, value in _json(read, "tokenizer_config.json", optional=True).items()
              if key != "chat_template"}  # fmt: skip
    return digest_of([sha256(tokenizer), sha256(json.dumps(config, sort_keys=True).encode())])


def chat_template(read: Reader) -> str:
    """Return the model's default chat template; raises `SpeccError` when there is none."""
    if (file := read("chat_template.jinja")) is not None:
        return file.decode()
    found = _json(read, "tokenizer_config.json", optional=True).get("chat_template")
    if isinstance(found, list):
        found = next((item["template"] for item in found if item.get("name") == "default"), None)
    if not found:
        raise SpeccError(
            "the verifier has no chat template",
            hint="use the instruct model, or put a `chat_template.jinja` beside its config",
        )
    return str(found)


def _json(read: Reader, name: str, *, optional: bool = False) -> dict[str, Any]:
    data = read(name)
    if data is None:
        if optional:
            return {}
        raise SpeccError(f"the verifier has no `{name}`")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SpeccError(f"the verifier's `{name}` is not JSON") from error
    if not isinstance(value, dict):
        raise SpeccError(f"the verifier's `{name}` is not a JSON object")
    return value
