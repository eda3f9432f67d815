"""What every algorithm has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Tree = Mapping[str, Any]
"""A sub-tree of the resolved spec: plain JSON values."""


class Section(BaseModel):
    """A part of the language: unknown keys are errors, values are frozen, docstrings describe the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, strict=True)


class DraftSection(Section):
    """What the draft of every algorithm has."""

    layers: int
    vocabulary: int | Literal["full"] | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint.

    `dtype` is safetensors' name of it; `"draft"` stands for the export's dtype. `origin` says who makes it:
    `trained` by the draft stage, `verifier` copied from it, `vocabulary` from the vocabulary map.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "draft"
    origin: Literal["trained", "verifier", "vocabulary"] = "trained"


@dataclass(frozen=True, slots=True)
class Derived:
    """A derived value and the words that say where it is from."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One row of the table of algorithms.

    `section` is its part of the language. `derive(draft, verifier)` returns values for dotted paths that the
    spec leaves out (`draft.hidden_state_layers`), given the draft section as plain values and the verifier's
    configuration. `layout(draft, verifier)` lists every tensor of its checkpoint, given resolved values.
    `max_speculative_tokens(draft)` is the longest draft that it can be asked for.
    """

    name: str
    title: str
    section: type[DraftSection]
    derive: Callable[[Tree, Tree], Mapping[str, Derived]]
    layout: Callable[[Tree, Tree], list[TensorSpec]]
    max_speculative_tokens: Callable[[Tree], int]


def decoder_config(draft: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft decoder as a Hugging Face Llama configuration, made from the verifier's own.

    `verifier` is `verifier.config` of the resolved spec. Heads, head size, rotary embedding, norm epsilon and
    vocabulary are the verifier's, so that the draft may share its embeddings and read its hidden states.
    """
    window = draft["sliding_window"]
    kind = "full_attention" if window is None else "sliding_attention"
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": verifier["bos_token_id"],
        "eos_token_id": verifier["eos_token_ids"][0] if verifier["eos_token_ids"] else None,
        "head_dim": verifier["head_dim"],
        "hidden_act": "silu",
        "hidden_size": verifier["hidden_size"],
        "initializer_range": 0.02,
        "intermediate_size": draft["intermediate_size"],
        "layer_types": [kind] * draft["layers"],
        "max_position_embeddings": verifier["max_position_embeddings"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": verifier["num_attention_heads"],
        "num_hidden_layers": draft["layers"],
        "num_key_value_heads": verifier["num_key_value_heads"],
        "pretraining_tp": 1,
        "rms_norm_eps": verifier["rms_norm_eps"],
        "rope_parameters": dict(verifier["rope_parameters"]),
        "sliding_window": window,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": verifier["vocab_size"],
    }
