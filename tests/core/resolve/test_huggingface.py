"""Facts about a verifier from its small files."""

from __future__ import annotations

import json

import pytest

from specc.core.errors import SpeccError
from specc.core.resolve.huggingface import chat_template, config_facts, tokenizer_digest

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6,
    "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 400, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "eos_token_id": 2,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 128},
}  # fmt: skip


def _reader(files: dict[str, object]):
    return lambda name: json.dumps(files[name]).encode() if name in files else None


def test_old_rope_fields_become_rope_parameters_and_missing_sizes_are_derived() -> None:
    facts = config_facts(_reader({"config.json": LLAMA, "generation_config.json": {"eos_token_id": [9, 2]}}))
    assert facts["rope_parameters"]["rope_type"] == "llama3"
    assert facts["rope_parameters"]["rope_theta"] == 500000.0
    assert (facts["num_key_value_heads"], facts["head_dim"]) == (4, 16)
    assert facts["eos_token_ids"] == [2, 9]


def test_a_missing_value_is_named() -> None:
    broken = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
    with pytest.raises(SpeccError, match="rms_norm_eps"):
        config_facts(_reader({"config.json": broken}))


def test_the_chat_template_does_not_count_in_the_tokenizers_digest() -> None:
    one = _reader({"tokenizer.json": {}, "tokenizer_config.json": {"a": 1, "chat_template": "x"}})
    two = _reader({"tokenizer.json": {}, "tokenizer_config.json": {"a": 1, "chat_template": "y"}})
    other = _reader({"tokenizer.json": {}, "tokenizer_config.json": {"a": 2}})
    assert tokenizer_digest(one) == tokenizer_digest(two) != tokenizer_digest(other)
    assert chat_template(one) == "x"
    with pytest.raises(SpeccError, match="no chat template"):
        chat_template(other)
