"""Facts about a verifier from its `config.json` and tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from specc.core.errors import SpeccError
from specc.core.files import digest_of, sha256
from specc.core.resolve import families
from specc.core.resolve.quantisation import quantisation

Reader = Callable[[str], bytes | None]
"""Returns a file's bytes, or None if the model has no such file."""


def config_facts(read: Reader) -> dict[str, Any]:
    """Return the tree `verifier.config`; raises `SpeccError` for families whose targets would be wrong."""
    raw = _json(read, "config.json")
    name, family, text = families.find(raw)
    generation = _json(read, "generation_config.json", optional=True)
    try:
        heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
        eos = generation.get("eos_token_id", text.get("eos_token_id"))
        rope, share = families.rotary(family, text)
        tied = bool(text.get("tie_word_embeddings", False))
        quantised = quantisation(raw, tied=tied)
        return {
            "architecture": raw["architectures"][0],
            "model_type": name,
            "hidden_size": hidden,
            "num_hidden_layers": int(text["num_hidden_layers"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(text.get("num_key_value_heads") or heads),
            "head_dim": int(text.get("head_dim") or hidden // heads),
            "intermediate_size": families.dense_width(family, text),
            "vocab_size": int(text["vocab_size"]),
            "max_position_embeddings": int(text["max_position_embeddings"]),
            "rms_norm_eps": float(text[family.epsilon]),
            "rope_parameters": rope,
            **({} if share == 1 else {"partial_rotary_factor": share}),
            "tie_word_embeddings": tied,
            "bos_token_id": text.get("bos_token_id"),
            "eos_token_ids": [] if eos is None else sorted(eos) if isinstance(eos, list) else [eos],
            **families.peculiar(family, text),
            **families.vision(raw),
            **({"quantization": quantised} if quantised else {}),
        }
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SpeccError(f"the verifier's `config.json` lacks or garbles {error}") from error


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
