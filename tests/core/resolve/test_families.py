"""The table of families: what it reads from real configurations, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specc.core.errors import SpeccError
from specc.core.lock.schema import VerifierConfig
from specc.core.resolve.families import FAMILIES, INSIDE
from specc.core.resolve.huggingface import config_facts

PLAIN: dict[str, Any] = {
    "architectures": ["AnyForCausalLM"], "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 400, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512, "rope_theta": 500000.0, "eos_token_id": 2,
}  # fmt: skip
COHERE = {key: value for key, value in PLAIN.items() if key != "rms_norm_eps"} | {"layer_norm_eps": 1e-5}
KEYS = {
    "architecture", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "bos_token_id", "eos_token_ids",
}  # fmt: skip
"""What every verifier's facts have, and a plain one's alone."""
CLASSES = {
    "cohere": "CohereConfig", "cohere2": "Cohere2Config", "gemma": "GemmaConfig", "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig", "gpt_oss": "GptOssConfig", "granite": "GraniteConfig",
    "llama": "LlamaConfig", "mimo": "Qwen2Config", "mistral": "MistralConfig", "mixtral": "MixtralConfig",
    "olmo2": "Olmo2Config", "phi3": "Phi3Config", "qwen2": "Qwen2Config", "qwen2_moe": "Qwen2MoeConfig",
    "qwen3": "Qwen3Config", "qwen3_5_moe_text": "Qwen3_5MoeTextConfig", "qwen3_5_text": "Qwen3_5TextConfig",
    "qwen3_moe": "Qwen3MoeConfig", "qwen3_next": "Qwen3NextConfig",
}  # fmt: skip
"""transformers' classes of all families' configurations; MiMo's has code of its own and derives from Qwen2's."""


def facts(config: dict[str, Any], generation: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the facts of a `config.json`."""
    files = {"config.json": config} | ({"generation_config.json": generation} if generation else {})
    return config_facts(lambda name: json.dumps(files[name]).encode() if name in files else None)


@pytest.mark.parametrize("family", ["llama", "mistral", "olmo2", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"])
def test_a_plain_family_has_no_facts_of_its_own(family: str) -> None:
    found = facts(PLAIN | {"model_type": family})
    assert set(found) == KEYS
    assert found["intermediate_size"] == 96


OWN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"model_type": "gemma"}, {"norm": "gemma", "embedding_scale": 8.0}),
    ({"model_type": "gemma2"}, {"norm": "gemma", "embedding_scale": 8.0, "logit_softcap": 30.0}),
    ({"model_type": "gemma2", "final_logit_softcapping": 20}, {"norm": "gemma", "embedding_scale": 8.0,
                                                               "logit_softcap": 20.0}),
    ({"model_type": "gemma2", "final_logit_softcapping": None}, {"norm": "gemma", "embedding_scale": 8.0}),
    ({"model_type": "gemma3_text"}, {"norm": "gemma", "embedding_scale": 8.0}),
    ({"model_type": "granite", "logits_scaling": 16, "embedding_multiplier": 12}, {"logit_scale": 0.0625}),
    ({"model_type": "granite"}, {}),
    ({"model_type": "mimo", "num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 1}),
    ({"model_type": "phi3", "partial_rotary_factor": 0.75}, {"partial_rotary_factor": 0.75}),
    ({"model_type": "qwen3_next", "num_nextn_predict_layers": 1},
     {"norm": "gemma", "linear_attention": True, "partial_rotary_factor": 0.25, "num_nextn_predict_layers": 1,
      "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
      "shared_expert_intermediate_size": 512, "norm_topk_prob": True}),
    ({"model_type": "qwen3_next", "num_nextn_predict_layers": 1, "mlp_only_layers": [0], "num_experts_per_tok": 4},
     {"norm": "gemma", "linear_attention": True, "partial_rotary_factor": 0.25, "num_nextn_predict_layers": 1,
      "num_experts": 0, "num_experts_per_tok": 4, "moe_intermediate_size": 512,
      "shared_expert_intermediate_size": 512, "norm_topk_prob": True}),
    ({"model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1},
     {"norm": "gemma", "linear_attention": True, "partial_rotary_factor": 0.25, "num_nextn_predict_layers": 1}),
    ({"model_type": "qwen3_5_text", "layer_types": ["full_attention", "linear_attention"]},
     {"norm": "gemma", "linear_attention": True, "partial_rotary_factor": 0.25}),
    ({"model_type": "qwen3_5_text", "layer_types": ["full_attention"] * 2},
     {"norm": "gemma", "partial_rotary_factor": 0.25}),
    ({"model_type": "qwen3_next", "full_attention_interval": 1}, {"norm": "gemma", "partial_rotary_factor": 0.25}),
    ({"model_type": "qwen3_5_moe_text", "partial_rotary_factor": 1.0},
     {"norm": "gemma", "linear_attention": True}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "own"), OWN)
def test_what_is_peculiar_in_a_family_is_a_fact(changes: dict[str, Any], own: dict[str, Any]) -> None:
    found = facts(PLAIN | changes)
    assert {key: value for key, value in found.items() if key not in KEYS} == own
    assert set(found) <= set(VerifierConfig.model_fields)
    VerifierConfig.model_validate(found)


def test_cohere_has_a_layer_norm_and_the_epsilon_of_it() -> None:
    found = facts(COHERE | {"model_type": "cohere", "layer_norm_eps": 1e-4})
    assert (found["norm"], found["rms_norm_eps"], found["logit_scale"]) == ("layernorm", 1e-4, 0.0625)
    assert found["tie_word_embeddings"]


@pytest.mark.parametrize("family", ["qwen3_5_moe_text"])
def test_a_verifier_of_experts_alone_has_drafts_of_three_times_the_hidden_size(family: str) -> None:
    assert facts(PLAIN | {"model_type": family})["intermediate_size"] == 192


def test_a_model_for_more_than_text_is_read_inside() -> None:
    text = PLAIN | {"model_type": "qwen3_5_text", "layer_types": ["full_attention"]}
    raw = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "tie_word_embeddings": True,
           "text_config": text, "vision_config": {"hidden_size": 1152}, "eos_token_id": [7, 5]}  # fmt: skip
    found = facts(raw)
    assert found.pop("architecture") == "Qwen3_5ForConditionalGeneration"
    assert found == {key: value for key, value in facts(text | {"tie_word_embeddings": True}).items()
                     if key != "architecture"}  # fmt: skip


def test_what_the_hub_leaves_out_is_as_in_transformers() -> None:
    """As it has Gemma 3."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "eos_token_id": [106, 1],
            "architectures": ["Gemma3ForCausalLM"]}  # fmt: skip
    assert facts(text) == {
        "architecture": "Gemma3ForCausalLM", "model_type": "gemma3_text", "hidden_size": 2560,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "intermediate_size": 10240, "vocab_size": 262208, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_ids": [1, 106], "norm": "gemma",
        "embedding_scale": 2560**0.5,
    }  # fmt: skip


def test_a_draft_has_the_rotary_embedding_of_whole_heads_one_axis_and_layers_without_a_window() -> None:
    both = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}  # fmt: skip
    found = facts(PLAIN | {"model_type": "gemma3_text", "rope_parameters": both})
    assert found["rope_parameters"] == both["full_attention"]
    axes = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [1, 1, 0], "mrope_interleaved": True,
            "partial_rotary_factor": 0.5}  # fmt: skip
    found = facts(PLAIN | {"model_type": "qwen3_5_text", "rope_parameters": axes})
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e7}
    assert found["partial_rotary_factor"] == 0.5


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "nemotron"}, r"family `nemotron` are not in this release"),
    ({}, r"family `None` are not in this release"),
    ({"model_type": "llama", "logit_scale": 0.5}, r"sets `logit_scale` to 0\.5, which the family `llama` does not"),
    ({"model_type": "granite", "logit_scale": 2}, r"sets `logit_scale` to 2, which the family `granite`"),
    ({"model_type": "qwen3", "logits_scaling": 8.0}, r"sets `logits_scaling`"),
    ({"model_type": "gemma", "final_logit_softcapping": 30.0}, r"sets `final_logit_softcapping` to 30\.0"),
    ({"model_type": "cohere"}, r"sets `rms_norm_eps` to 1e-05, which the family `cohere`"),
    ({"model_type": "qwen2", "partial_rotary_factor": 0.5}, r"sets `partial_rotary_factor`"),
    ({"model_type": "qwen2", "rope_parameters": {"partial_rotary_factor": 0.5}}, r"sets `partial_rotary_factor`"),
    ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, r"`use_bidirectional_attention` to true"),
    ({"model_type": "gemma2", "tie_word_embeddings": False}, r"vLLM ties those of `gemma2` always"),
    ({"model_type": "gemma2", "final_logit_softcapping": 0}, r"lacks or garbles 'final_logit_softcapping'"),
    ({"model_type": "granite", "logits_scaling": "8"}, r"lacks or garbles 'logits_scaling'"),
    ({"model_type": "granite", "logits_scaling": None}, r"lacks or garbles 'logits_scaling'"),
    ({"model_type": "llama", "rope_scaling": {"type": "su"}}, r"rotary embeddings of type `su` are not known"),
    ({"model_type": "gemma3"}, r"no draft beside a verifier of the family `gemma3`"),
    ({"model_type": "qwen3_5", "text_config": {"model_type": "gemma2"}}, r"of the family `gemma2`, not `qwen3_5_text`"),
    ({"model_type": "qwen3_5", "text_config": PLAIN | {"final_logit_softcapping": 30.0}},
     r"sets `final_logit_softcapping` to 30\.0, which the family `qwen3_5` does not have"),
    ({"model_type": "qwen3_5", "tie_word_embeddings": False, "text_config": PLAIN | {"tie_word_embeddings": True}},
     r"sets `tie_word_embeddings` to false, its `text_config` to true"),
    ({"model_type": "qwen3_5", "text_config": []}, r"lacks or garbles 'num_attention_heads'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_training_would_get_wrong_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpeccError, match=message):
        facts(PLAIN | changes)


def test_the_error_lists_what_is_known() -> None:
    with pytest.raises(SpeccError) as error:
        facts(PLAIN | {"model_type": "nemotron"})
    assert error.value.hint is not None
    for name in (*FAMILIES, *INSIDE):
        assert f"`{name}`" in error.value.hint


@pytest.mark.engine
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_transformers_takes_or_an_error(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, CLASSES[family])()
    full = {**config.to_dict(), "model_type": family, "architectures": ["AnyForCausalLM"], "eos_token_id": 1}
    whole, agreed = facts(full), 0
    for key in full:
        try:
            found = facts({one: value for one, value in full.items() if one != key})
        except SpeccError:
            continue
        if key != "bos_token_id":  # it decides nothing: what a text begins with is the tokenizer's
            assert found | {"eos_token_ids": [1]} == whole, key
            agreed += 1
    assert agreed > 5


PUBLISHED = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 32000,
    "pad_token_id": 32001, "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16",
    "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
                    "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
                    "torch_dtype": "float16", "vocab_size": 32064},
    "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
                      "model_type": "clip_vision_model", "num_hidden_layers": 24, "patch_size": 14,
                      "projection_dim": 768},
}  # fmt: skip
"""The configuration of llava-hf/llava-1.5-7b-hf, in which most of Llama is left out."""


def test_llava_takes_images_and_its_text_part_is_a_llama() -> None:
    transformers = pytest.importorskip("transformers")
    found = facts(PUBLISHED)
    theirs = transformers.LlavaConfig(**{key: value for key, value in PUBLISHED.items() if key != "architectures"})
    assert set(found) == {*KEYS, "image_token_id"}
    assert (found["model_type"], found["image_token_id"]) == ("llava", theirs.image_token_index)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
                "vocab_size", "max_position_embeddings", "rms_norm_eps", "head_dim"):  # fmt: skip
        assert found[key] == getattr(theirs.text_config, key), key
    assert found["rope_parameters"]["rope_theta"] == theirs.text_config.rope_parameters["rope_theta"]
    assert found["eos_token_ids"] == [theirs.text_config.eos_token_id]
    VerifierConfig.model_validate(found)


def test_a_llava_of_another_family_inside_is_refused() -> None:
    with pytest.raises(SpeccError, match="is of the family `qwen2`, not `llama`"):
        facts({**PUBLISHED, "text_config": {**PUBLISHED["text_config"], "model_type": "qwen2"}})


@pytest.mark.parametrize("family", sorted(set(INSIDE) - {"llava"}))
def test_of_other_models_for_more_than_text_the_text_is_taken(family: str) -> None:
    assert "image_token_id" not in facts({**PLAIN, "model_type": family, "text_config": PLAIN, "image_token_id": 7})
