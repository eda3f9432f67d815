"""What every algorithm has to say of itself."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

Tree = Mapping[str, Any]
"""A sub-tree of the resolved spec: plain JSON values."""


class Section(BaseModel):
    """A part of the language: unknown keys are errors, values are frozen, docstrings describe the fields."""

    # Not `use_attribute_docstrings`: it parses the source of every class as it is imported, by every command.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the model's JSON Schema, in which each field is described by the docstring below it."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, words in _docstrings(cls).items():
            properties[cls.model_fields[name].alias or name]["description"] = words
        return schema


def _docstrings(model: type[Section]) -> dict[str, str]:
    """Return the docstrings below the fields of a model and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(Section)]):
        source = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = [part for node in source.body if isinstance(node, ast.ClassDef) for part in node.body]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = inspect.cleandoc(words)
                case _:
                    pass
    return found


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
class TrainingCost:
    """What training takes for one row, a position of a document; floating-point operations but for `kept`."""

    row: float
    """Of every row that an epoch sees."""
    target: float
    """Of a row that has a target, besides."""
    guess: float
    """Of a row of validation, from which the draft proposes tokens."""
    checked: float
    """Of a row of validation that has a target, besides: its loss."""
    kept: int
    """How often a row goes through the layers before its gradient: times that its activations are kept in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One row of the table of algorithms.

    `section` is its part of the language. `derive(draft, verifier)` returns values for dotted paths that the
    spec leaves out (`draft.hidden_state_layers`), given the draft section as plain values and the verifier's
    configuration. `layout(draft, verifier)` lists every tensor of its checkpoint, given resolved values.
    `hidden_states(draft)` is the number of the verifier's hidden states that are kept for each token.
    `training(draft, verifier, length)` is what a row costs among rows of `length` tokens in the mean.
    `max_speculative_tokens(draft)` is the longest draft that it can be asked for.
    """

    name: str
    title: str
    section: type[DraftSection]
    derive: Callable[[Tree, Tree], Mapping[str, Derived]]
    layout: Callable[[Tree, Tree], list[TensorSpec]]
    hidden_states: Callable[[Tree], int]
    training: Callable[[Tree, Tree, float], TrainingCost]
    max_speculative_tokens: Callable[[Tree], int]


def learnt(tensors: Iterable[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors that the draft stage learns, by name."""
    return {tensor.name: tensor.shape for tensor in tensors if tensor.origin == "trained"}


def attention(verifier: Tree, length: float, layers: int) -> float:
    """Return the operations a token for scores and sums of values, its context being half of `length` in the mean.

    The draft's heads are the verifier's, so that this holds for both.
    """
    return 2 * length * verifier["num_attention_heads"] * verifier["head_dim"] * layers


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
