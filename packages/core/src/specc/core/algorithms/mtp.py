"""MTP: a verifier's own head for the tokens after the next one (Gloeckle et al. 2024, arXiv:2404.19737), fine-tuned.

The head is a decoder layer over the verifier's last state and the next token (DeepSeek-AI 2024, arXiv:2412.19437,
section 2.2). It is served from inside the verifier's checkpoint, under the verifier's own tensor names.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from specc.core.algorithms.base import (
    Algorithm,
    Derived,
    DraftSection,
    Init,
    TensorSpec,
    TrainingCost,
    Tree,
    attention,
    decoder_layer,
    everywhere,
    learnt,
)
from specc.core.errors import SpeccError

HEAD: Final = "mtp_layers.0"
"""What the format calls the head."""
EXPERTS: Final = f"{HEAD}.mlp.experts."


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeHead:
    """What a family of verifiers makes of its head, as vLLM runs it.

    `place` is where the verifier keeps it, and `names` what it calls its parts where it does not say as the format
    does. `reads_normed`: whether it reads the last state after the verifier's final norm. `embedding_first`: the order
    of the two that `input_proj` reads. `blind_start`: whether it sees zeros in place of the embedding at position 0.
    `unit_offset`: whether its norms have the gain 1 + weight. `gated`: whether attention has an output gate beside its
    query, and norms of each query and key. `bias`: whether queries, keys and values have one. `model_type` is the
    decoder's in transformers.
    """

    model_type: str
    architecture: str
    place: str
    names: Mapping[str, str]
    reads_normed: bool
    embedding_first: bool
    blind_start: bool = False
    unit_offset: bool = False
    gated: bool = False
    bias: bool = False


_MIMO: Final = NativeHead(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    place="model.mtp_layers.0.",
    names={},
    reads_normed=False,
    embedding_first=False,
    blind_start=True,
    bias=True,
)


def _qwen(model_type: str, architecture: str) -> NativeHead:
    return NativeHead(
        model_type=model_type,
        architecture=architecture,
        place="mtp.layers.0.",
        names={
            "input_proj": "mtp.fc",
            "final_layernorm": "mtp.norm",
            "hidden_layernorm": "mtp.pre_fc_norm_hidden",
            "token_layernorm": "mtp.pre_fc_norm_embedding",
        },
        reads_normed=True,
        embedding_first=True,
        unit_offset=True,
        gated=True,
    )


HEADS: Final[Mapping[str, NativeHead]] = {
    # `model_type` of the verifier, or of the decoder layer in a speculator: MiMo's is Qwen2's
    "mimo": _MIMO,
    "qwen2": _MIMO,
    "qwen3_next": _qwen("qwen3_next", "Qwen3NextForCausalLM"),
    "qwen3_5_text": _qwen("qwen3_5_text", "Qwen3_5ForCausalLM"),
    "qwen3_5_moe_text": _qwen("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
}
SPARSE: Final[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
    ("qwen3_next", "qwen3_5_moe_text"),
    ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size",
     "norm_topk_prob"),
)  # fmt: skip
"""Families whose head may have experts, and what has to be known of these; `num_experts` is 0 for a head without."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A verifier's tensor and the part of one of the format's that it holds.

    That is all of it, or of expert `expert` the rows `rows[0]:rows[1]` (None: all of that expert's).
    """

    name: str
    shape: tuple[int, ...]
    expert: int | None = None
    rows: tuple[int, int] | None = None


class MtpDraft(DraftSection):
    """MTP: the verifier's own head, fine-tuned, and put back into the verifier."""

    algorithm: Literal["mtp"]
    """Algorithm of the draft model; it decides which other keys this section has."""
    steps: Annotated[int, Field(ge=1, le=16)] = 3
    """Number of times that the head is applied in a row in training; the longest draft that it is trained for."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Weight of step k in the loss is decay^k, with k from 0, divided by the sum of all."""
    init: Init | None = None
    """Weights to start from. Default: the verifier's own head."""


def head_of(verifier: Tree) -> NativeHead:
    """Return what is known of a verifier's head; raises `SpeccError` for other families."""
    try:
        return HEADS[verifier["model_type"]]
    except KeyError:
        known = ", ".join(f"`{name}`" for name in sorted(HEADS))
        raise SpeccError(
            f"the MTP head of a verifier of the family `{verifier['model_type']}` is not known",
            where="draft.algorithm",
            id="E0312",
            hint=f"families with a known one: {known}; for others use `algorithm: eagle3`",
        ) from None


def derive(draft: Tree, verifier: Tree) -> dict[str, Derived]:
    """Return what an MTP spec may leave out; raises `SpeccError` for a verifier without a head that is known."""
    head_of(verifier)
    if missing := [name for name in SPARSE.get(verifier["model_type"], ()) if name not in verifier]:
        raise SpeccError(
            f"`verifier.config.{missing[0]}` is not known, and the verifier's MTP head may have experts",
            where="draft.algorithm",
            id="E0312",
            hint="the lock is of another release: `specc lock --upgrade verifier SPEC`",
        )
    if (count := verifier.get("num_nextn_predict_layers", 0)) != 1:
        raise SpeccError(
            f"the verifier has {count or 'no'} MTP layer{'s' if count > 1 else ''}, and `algorithm: mtp` trains one",
            where="draft.algorithm",
            id="E0312",
            hint="use `algorithm: eagle3`, which needs none" if not count else "vLLM runs the first layer alone",
        )
    return {"export.speculative_tokens": Derived(draft["steps"], "derived from draft.steps")}


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of an MTP checkpoint for a resolved `verifier.config`."""
    _ = draft  # its steps share one head
    head, hidden = head_of(verifier), verifier["hidden_size"]
    tensors = [
        TensorSpec(f"{HEAD}.input_proj.weight", (hidden, 2 * hidden)),
        *(TensorSpec(f"{HEAD}.{one}_layernorm.weight", (hidden,)) for one in ("token", "hidden", "final")),
        *_layer(head, verifier),
    ]
    return sorted(tensors, key=lambda tensor: tensor.name)


def _layer(head: NativeHead, verifier: Tree) -> list[TensorSpec]:
    """Return the tensors of the head's decoder layer."""
    query = verifier["num_attention_heads"] * verifier["head_dim"]
    value = verifier["num_key_value_heads"] * verifier["head_dim"]
    experts = verifier.get("num_experts", 0)
    tensors: list[TensorSpec] = []
    for spec in decoder_layer(HEAD, verifier, verifier["intermediate_size"], head_norms=head.gated):
        if head.gated and spec.name.endswith("q_proj.weight"):
            tensors.append(TensorSpec(spec.name, (2 * query, verifier["hidden_size"])))
        elif not (experts and ".mlp." in spec.name):
            tensors.append(spec)
    if head.bias:
        sizes = {"q": query, "k": value, "v": value}
        tensors += [TensorSpec(f"{HEAD}.self_attn.{one}_proj.bias", (size,)) for one, size in sizes.items()]
    return [*tensors, *(_experts(verifier) if experts else [])]


def _experts(verifier: Tree) -> list[TensorSpec]:
    """Return the tensors of a sparse feed-forward part, as Qwen's: its router, its experts, and one that all share."""
    hidden, count = verifier["hidden_size"], verifier["num_experts"]
    inner, shared = verifier["moe_intermediate_size"], verifier["shared_expert_intermediate_size"]
    return [
        TensorSpec(f"{EXPERTS}gate_up_proj", (count, 2 * inner, hidden)),
        TensorSpec(f"{EXPERTS}down_proj", (count, hidden, inner)),
        TensorSpec(f"{HEAD}.mlp.gate.weight", (count, hidden)),
        TensorSpec(f"{HEAD}.mlp.shared_expert.gate_proj.weight", (shared, hidden)),
        TensorSpec(f"{HEAD}.mlp.shared_expert.up_proj.weight", (shared, hidden)),
        TensorSpec(f"{HEAD}.mlp.shared_expert.down_proj.weight", (hidden, shared)),
        TensorSpec(f"{HEAD}.mlp.shared_expert_gate.weight", (1, hidden)),
    ]


def pieces(verifier: Tree, names: Collection[str]) -> dict[str, list[Piece]]:
    """Return for each tensor of the layout what the verifier, whose tensors have `names`, calls its parts.

    Experts are one tensor for all, as in the format, or three for each; where the verifier has neither they are the
    latter. Raises `SpeccError` for a tensor of the verifier's head that has no place in the layout.
    """
    head = head_of(verifier)
    found: dict[str, list[Piece]] = {}
    for spec in layout({}, verifier):
        part = spec.name.removeprefix(f"{HEAD}.")
        name = f"{head.names[part.split('.')[0]]}.weight" if part.split(".")[0] in head.names else head.place + part
        apart = spec.name.startswith(EXPERTS) and name not in names
        found[spec.name] = _apart(head, spec) if apart else [Piece(name, spec.shape)]
    known = {piece.name for parts in found.values() for piece in parts}
    root = head.place.removesuffix("layers.0.") if head.names else head.place
    if unknown := sorted(name for name in names if name.startswith(root) and name not in known):
        raise SpeccError(
            f"tensor `{unknown[0]}` of the verifier's MTP head is not known",
            hint=f"heads of the family `{verifier['model_type']}` are trained without it; use `algorithm: eagle3`",
        )
    return found


def _apart(head: NativeHead, spec: TensorSpec) -> list[Piece]:
    """Return a verifier's matrices of each expert for the format's one of all."""
    count, rows, width = spec.shape
    half = rows // 2
    parts: dict[str, tuple[int, int] | None] = {"gate_proj": (0, half), "up_proj": (half, rows)}
    if spec.name.endswith("down_proj"):
        parts = {"down_proj": None}
    return [
        Piece(f"{head.place}mlp.experts.{expert}.{part}.weight", (here[1] - here[0] if here else rows, width), expert,
              here)
        for expert in range(count)
        for part, here in parts.items()
    ]  # fmt: skip


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row costs as `specc.train.models.mtp` computes.

    At the first step all rows make keys and values from both inputs, and those that a later step or a target needs go
    on; later steps have the rows with a target. What is learnt costs 6 a weight, experts only where they are chosen,
    and the frozen head 2 for the verifier and 4 for each step of the draft.
    """
    steps = draft["steps"]
    size = {name: math.prod(shape) for name, shape in learnt(layout(draft, verifier)).items() if len(shape) > 1}
    if count := verifier.get("num_experts", 0):
        chosen = verifier["num_experts_per_tok"] / count
        size |= {name: weights * chosen for name, weights in size.items() if name.startswith(EXPERTS)}
    layer = sum(size.values())
    memory = sum(size[f"{HEAD}.{name}.weight"] for name in ("input_proj", "self_attn.k_proj", "self_attn.v_proj"))
    head = verifier["vocab_size"] * verifier["hidden_size"]
    seen = attention(verifier, length, 1)
    guess = steps * (2 * (layer + head) + seen)
    return TrainingCost(
        row=6 * memory,
        target=6 * (layer - memory) + 6 * (steps - 1) * layer + steps * 3.5 * seen + (2 + 4 * steps) * head,
        guess=guess,
        checked=guess + 2 * head,
        kept=steps,
    )


def fields(draft: Tree) -> dict[str, Any]:
    """Return MTP's top-level field: the head has one layer."""
    _ = draft
    return {"num_nextn_predict_layers": 1}


def decoder(draft: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the head's decoder layer in transformers' words: the verifier's own values, for one layer."""
    _ = draft
    head = head_of(verifier)
    turning = {name: verifier[name] for name in ("partial_rotary_factor",) if name in verifier}
    return {
        "architectures": [head.architecture],
        "attention_bias": head.bias,
        "attention_dropout": 0.0,
        "bos_token_id": verifier["bos_token_id"],
        "eos_token_id": verifier["eos_token_ids"][0] if verifier["eos_token_ids"] else None,
        "head_dim": verifier["head_dim"],
        "hidden_act": "silu",
        "hidden_size": verifier["hidden_size"],
        "initializer_range": 0.02,
        "intermediate_size": verifier["intermediate_size"],
        "layer_types": ["full_attention"],
        "max_position_embeddings": verifier["max_position_embeddings"],
        "model_type": head.model_type,
        "num_attention_heads": verifier["num_attention_heads"],
        "num_hidden_layers": 1,
        "num_key_value_heads": verifier["num_key_value_heads"],
        "rms_norm_eps": verifier["rms_norm_eps"],
        "rope_parameters": {**verifier["rope_parameters"], **turning},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": verifier["vocab_size"],
        **{name: verifier[name] for name in SPARSE.get(verifier["model_type"], ()) if name in verifier},
    }


def layers(draft: Tree) -> list[int]:
    """Return no layer: the head reads the last one's output alone."""
    _ = draft
    return []


def drafted(draft: Tree) -> tuple[int, str]:
    """Return how often the head is applied in training."""
    return draft["steps"], "draft.steps"


def max_speculative_tokens(draft: Tree) -> int:
    """Return 4 times the trained steps: the head can be applied more often than it was trained for."""
    return 4 * draft["steps"]


MTP = Algorithm(
    name="mtp",
    title="MTP",
    section=MtpDraft,
    derive=derive,
    layout=layout,
    layers=layers,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={"method": "mtp"},
    stitched=True,
    vllm=everywhere,
    drafted=drafted,
    loss={"ce": 1.0},
    fields=fields,
    decoder=decoder,
)
