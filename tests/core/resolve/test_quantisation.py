"""What a `quantization_config` says, as each of the methods writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specc.core.errors import SpeccError
from specc.core.lock.schema import VerifierConfig
from specc.core.resolve.huggingface import config_facts
from specc.core.resolve.quantisation import METHODS, quantisation

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 384, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None, "symmetric": True}
INT4 = INT8 | {"num_bits": 4, "strategy": "group", "group_size": 128}
FP8 = INT8 | {"type": "float"}


def compressed(*groups: tuple[dict[str, Any], dict[str, Any] | None], **more: Any) -> dict[str, Any]:
    named = {f"group_{index}": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
             for index, (weights, inputs) in enumerate(groups)}  # fmt: skip
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": ["lm_head"], **more}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False}
SAID: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (AWQ, {"method": "awq", "scheme": "W4A16", "group": 128}),
    (GPTQ, {"method": "gptq", "scheme": "W4A16", "group": 32}),
    (GPTQ | {"bits": 8, "group_size": -1}, {"method": "gptq", "scheme": "W8A16", "group": "channel"}),
    (GPTQ | {"desc_act": True}, {"method": "gptq", "scheme": "W4A16", "group": 32, "act_order": True}),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, {"method": "fp8", "scheme": "FP8", "group": "tensor"}),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {"method": "fp8", "scheme": "FP8", "group": "block"}),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
     {"method": "mxfp4", "scheme": "MXFP4", "group": 32}),
    (compressed((INT8, None)), {"method": "compressed-tensors", "scheme": "W8A16", "group": "channel"}),
    (compressed((INT8, INT8)), {"method": "compressed-tensors", "scheme": "W8A8", "group": "channel"}),
    (compressed((FP8, FP8)), {"method": "compressed-tensors", "scheme": "FP8", "group": "channel"}),
    (compressed((INT4, None)), {"method": "compressed-tensors", "scheme": "W4A16", "group": 128}),
    (compressed((INT4 | {"actorder": "group"}, None)),
     {"method": "compressed-tensors", "scheme": "W4A16", "group": 128, "act_order": True}),
    (compressed((INT4, None), (INT8, INT8)),
     {"method": "compressed-tensors", "scheme": "W4A16+W8A8", "group": "several"}),
    (compressed((INT8, None), ignore=["re:.*lm_head.*", "model.layers.0.mlp.down_proj"]),
     {"method": "compressed-tensors", "scheme": "W8A16", "group": "channel"}),
]  # fmt: skip


@pytest.mark.parametrize(("section", "expected"), SAID)
def test_every_method_says_the_same_things(section: dict[str, Any], expected: dict[str, Any]) -> None:
    raw = CONFIG | {"quantization_config": section}
    found = config_facts(lambda name: json.dumps(raw).encode() if name == "config.json" else None)
    assert found["quantization"] == expected
    assert VerifierConfig.model_validate(found).quantization is not None


@pytest.mark.parametrize("raw", [{}, {"quantization_config": None}, {"quantization_config": {}}, {"text_config": {}}])
def test_what_is_not_quantised_has_no_such_fact(raw: dict[str, Any]) -> None:
    assert quantisation(raw, tied=False) is None
    found = config_facts(lambda name: json.dumps(CONFIG | raw).encode() if name == "config.json" else None)
    assert "quantization" not in found


def test_what_stands_elsewhere_is_found() -> None:
    for raw in ({"compression_config": compressed((INT8, None))}, {"text_config": {"quantization_config": AWQ}}):
        assert quantisation(raw, tied=False) is not None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by `bitsandbytes` are not in this release"),
    (GPTQ | {"bits": 3}, "have 3 bits"),
    (compressed((INT4 | {"type": "float"}, None)), "of type float with 4 bits"),
    (GPTQ | {"lm_head": True}, "the verifier's head is quantised"),
    (AWQ | {"lm_head": True}, "the verifier's head is quantised"),
    (compressed((INT8, None), ignore=[]), "the verifier's head is quantised"),
    ({"quant_method": "gptq", "bits": 4}, "lacks or garbles 'group_size'"),
]


@pytest.mark.parametrize(("section", "message"), REFUSED)
def test_what_training_could_not_read_is_refused(section: dict[str, Any], message: str) -> None:
    raw = CONFIG | {"quantization_config": section}
    with pytest.raises(SpeccError, match=message):
        config_facts(lambda name: json.dumps(raw).encode() if name == "config.json" else None)


def test_a_tied_head_is_the_embedding_which_no_method_quantises() -> None:
    assert quantisation({"quantization_config": compressed((INT8, None), ignore=[])}, tied=True) is not None


def test_the_error_lists_the_methods() -> None:
    with pytest.raises(SpeccError) as error:
        quantisation({"quantization_config": {"quant_method": "quark"}}, tied=False)
    assert error.value.hint is not None
    assert all(f"`{name}`" in error.value.hint for name in METHODS)
