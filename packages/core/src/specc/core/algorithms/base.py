"""What every algorithm has to say of itself."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

Tree = Mapping[str, Any]
"""A sub-tree of the resolved spec: plain JSON values."""


class Section(BaseModel):
    """A part of the language: unknown keys are errors, values are frozen, docstrings describe the fields.

    A section that is another's default is made by `model_construct`: a call would build its validator at import. The
    modules of sections have no `from __future__ import annotations`: pydantic would compile each annotation at import.
    """

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
        for one, below in itertools.pairwise(body):
            match one, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = inspect.cleandoc(words)
                case _:
                    pass
    return found


class DraftSection(Section):
    """What the draft of every algorithm has: `algorithm`, and knobs of its own."""


LayoutName = Literal["eagle3", "modelopt", "peagle", "dflash", "dspark", "mtp", "speculators", "eagle"]
"""Names of other repositories' layouts, whose rows are in `specc.core.layouts`."""


class Init(Section):
    """Weights to start from, in place of random ones: an earlier speculator, or a draft of another repository."""

    from_: Annotated[Annotated[str, Field(min_length=1)] | None, Field(alias="from")] = None
    """Folder of an earlier speculator of the same algorithm, in the speculators format and with the same shapes;
    relative to the spec. Excludes `convert`. Default: none."""
    convert: Annotated[str, Field(min_length=1)] | None = None
    """Folder or hub id (`org/name`) of a draft in the layout of another repository, which is converted first; it is of
    the same algorithm and has the same shapes. Excludes `from`. Default: none."""
    layout: LayoutName | None = None
    """Layout of what is converted. Default: found from its files."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of a hub id that is converted; the lock pins the commit and every file's sha256. Default:
    `main`."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint.

    `dtype` is safetensors' name of it; `"draft"` stands for the export's dtype. `origin` says who makes it:
    `trained` by the draft stage, `verifier` copied from it, `vocabulary` from the vocabulary map. What is `by_token`
    has a row for each token of a vocabulary: embeddings and heads.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "draft"
    origin: Literal["trained", "verifier", "vocabulary"] = "trained"
    by_token: bool = False


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
    most: int | None = None
    """Rows of an optimizer step that are learnt from as ones with a target; None for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One row of the table of algorithms.

    `section` is its part of the language. `derive(draft, verifier)` returns values for dotted paths that the
    spec leaves out (`draft.hidden_state_layers`), given the draft section as plain values and the verifier's
    configuration. `layout(draft, verifier)` lists every tensor of its checkpoint, given resolved values.
    `layers(draft)` are the ids of the verifier's layers whose input states it reads, beside the last layer's output.
    `training(draft, verifier, length)` is what a row costs among rows of `length` tokens in the mean.
    `max_speculative_tokens(draft)` is the longest draft that it can be asked for. `serving` is what vLLM is told of a
    speculator beside its folder and its number of tokens, and `vllm(draft)` the devices on which vLLM runs it: on
    others it is evaluated by the reference decoder. `drafted(draft)` is the number of tokens of a draft in training
    and the field that decides it, and `loss` the losses and weights of a spec that names none. `fields(draft)` are its
    own top-level fields of a speculator's `config.json`, all of them always written, `absent` what readers take a
    missing one for, and `decoder(draft, verifier)` its `transformer_layer_config`. A draft that is `stitched` is a
    part of the verifier, and served in a copy of it.
    """

    name: str
    title: str
    section: type[DraftSection]
    derive: Callable[[Tree, Tree], Mapping[str, Derived]]
    layout: Callable[[Tree, Tree], list[TensorSpec]]
    layers: Callable[[Tree], list[int]]
    training: Callable[[Tree, Tree, float], TrainingCost]
    max_speculative_tokens: Callable[[Tree], int]
    serving: Mapping[str, Any]
    vllm: Callable[[Tree], tuple[str, ...]]
    drafted: Callable[[Tree], tuple[int, str]]
    loss: Mapping[str, float]
    fields: Callable[[Tree], dict[str, Any]]
    decoder: Callable[[Tree, Tree], dict[str, Any]]
    absent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stitched: bool = False


def vocabulary_of(draft: Tree, verifier: Tree) -> int:
    """Return the number of tokens that a resolved draft can propose; all, where the algorithm has no such knob."""
    return draft.get("vocabulary", verifier["vocab_size"])


def everywhere(_: Tree) -> tuple[str, ...]:
    """Return the devices on which vLLM runs what has no kernels of its own."""
    return ("cpu", "cuda")


def layers_read(draft: Tree) -> list[int]:
    """Return `draft.hidden_state_layers` of a resolved draft."""
    return list(draft["hidden_state_layers"])


def decoder_layer(
    name: str, verifier: Tree, inner: int, *, width: int | None = None, head_norms: bool = False
) -> list[TensorSpec]:
    """Return the tensors of a decoder layer whose attention reads `width` (default: the hidden size) values.

    `inner` is the width of its feed-forward part; `head_norms` is Qwen3's RMS norm of each query and key.
    """
    hidden, size = verifier["hidden_size"], verifier["head_dim"]
    query, value = verifier["num_attention_heads"] * size, verifier["num_key_value_heads"] * size
    reads: int = width or hidden
    norms = [TensorSpec(f"{name}.self_attn.{one}_norm.weight", (size,)) for one in ("q", "k")]
    return [
        TensorSpec(f"{name}.input_layernorm.weight", (hidden,)),
        TensorSpec(f"{name}.post_attention_layernorm.weight", (hidden,)),
        TensorSpec(f"{name}.self_attn.q_proj.weight", (query, reads)),
        TensorSpec(f"{name}.self_attn.k_proj.weight", (value, reads)),
        TensorSpec(f"{name}.self_attn.v_proj.weight", (value, reads)),
        TensorSpec(f"{name}.self_attn.o_proj.weight", (hidden, query)),
        TensorSpec(f"{name}.mlp.gate_proj.weight", (inner, hidden)),
        TensorSpec(f"{name}.mlp.up_proj.weight", (inner, hidden)),
        TensorSpec(f"{name}.mlp.down_proj.weight", (hidden, inner)),
        *(norms if head_norms else []),
    ]


def vocabulary_map(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return the tensors of the vocabulary map; none for the full vocabulary."""
    small, vocab = vocabulary_of(draft, verifier), verifier["vocab_size"]
    if small >= vocab:
        return []
    return [TensorSpec("d2t", (small,), "I64", "vocabulary"), TensorSpec("t2d", (vocab,), "BOOL", "vocabulary")]


def learnt(tensors: Iterable[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors that the draft stage learns, by name."""
    return {tensor.name: tensor.shape for tensor in tensors if tensor.origin == "trained"}


def directed(tensors: Iterable[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the matrices whose directions Muon takes, by name: of all but embeddings and heads."""
    return {tensor.name: tensor.shape for tensor in tensors
            if tensor.origin == "trained" and len(tensor.shape) == 2 and not tensor.by_token}  # fmt: skip


def attention(verifier: Tree, length: float, layers: int) -> float:
    """Return the operations a token for scores and sums of values, its context being half of `length` in the mean.

    The draft's heads are the verifier's, so that this holds for both.
    """
    return 2 * length * verifier["num_attention_heads"] * verifier["head_dim"] * layers


def decoder_config(draft: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft decoder as a Hugging Face Llama or Qwen3 configuration, made from the verifier's own.

    `verifier` is `verifier.config` of the resolved spec. Heads, head size, rotary embedding, norm epsilon and
    vocabulary are the verifier's, so that the draft may share its embeddings and read its hidden states.
    """
    window, decoder = draft["sliding_window"], draft["decoder"]
    kind = "full_attention" if window is None else "sliding_attention"
    own: dict[str, Any] = {
        "llama": {"architectures": ["LlamaForCausalLM"], "mlp_bias": False, "pretraining_tp": 1},
        "qwen3": {
            "architectures": ["Qwen3ForCausalLM"],
            "max_window_layers": 0,
            "use_sliding_window": window is not None,
        },
    }[decoder]
    return {
        **own,
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
        "model_type": decoder,
        "num_attention_heads": verifier["num_attention_heads"],
        "num_hidden_layers": draft["layers"],
        "num_key_value_heads": verifier["num_key_value_heads"],
        "rms_norm_eps": verifier["rms_norm_eps"],
        "rope_parameters": dict(verifier["rope_parameters"]),
        "sliding_window": window,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": verifier["vocab_size"],
    }
