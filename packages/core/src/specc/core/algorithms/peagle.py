"""P-EAGLE (arXiv:2602.01469): EAGLE-3's decoder, which proposes all tokens of a draft in one pass."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from specc.core.algorithms.base import (
    Algorithm,
    Derived,
    DraftSection,
    Init,
    Section,
    TensorSpec,
    TrainingCost,
    Tree,
    attention,
    everywhere,
    layers_read,
    learnt,
)
from specc.core.algorithms.eagle3 import decoder, fused, fused_fields
from specc.core.algorithms.eagle3 import derive as derive_fused


class Sampling(Section):
    """How many of the drafts' deeper places an optimizer step learns from."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the anchors that are kept at depth d is ratio^d."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Least share of the anchors that is kept at any depth."""
    anchors: Annotated[int, Field(ge=1)] = 512
    """Most places from which an optimizer step learns more than the first token of a draft; at least one a document."""


class PeagleDraft(DraftSection):
    """P-EAGLE: EAGLE-3's decoder, with a learned state and a mask token for what is not known yet."""

    algorithm: Literal["peagle"]
    """Algorithm of the draft model; it decides which other keys this section has."""
    layers: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of decoder layers of the draft."""
    decoder: Literal["llama", "qwen3"] = "llama"
    """Style of the decoder layers: `qwen3` has an RMS norm of each query and key besides."""
    vocabulary: Annotated[int, Field(ge=2)] | Literal["full"] | None = None
    """Number of tokens the draft can propose: the most frequent of the training data. `full` keeps the verifier's
    vocabulary. Default: 32000, or `full` if the verifier has no more."""
    hidden_state_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=16)] | None = None
    """The verifier layers whose input hidden states the draft reads; id k is the input of layer k.
    Default: 2, the middle, and the third from the end."""
    norm_before_residual: bool = True
    """Whether the residual of the first layer is taken after the hidden state's norm."""
    norm_before_fc: bool = True
    """Whether one RMS norm over the concatenated hidden states stands before their fusion."""
    sliding_window: Annotated[int, Field(ge=1)] | None = None
    """Number of most recent positions that the draft's attention sees. Default: all."""
    intermediate_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the draft's feed-forward layers. Default: the verifier's."""
    mask_token: Annotated[int, Field(ge=0)] | None = None
    """Id of the token whose embedding stands for a token that is not known yet. Default: the verifier's first
    end-of-sequence token."""
    depths: Annotated[int, Field(ge=1, le=16)] = 8
    """Number of tokens that are proposed in one pass; the longest draft that the speculator can be asked for."""
    sampling: Sampling = Sampling.model_construct()
    """Which of the drafts' deeper places are learnt from."""
    init: Init | None = None
    """Weights to start from. Default: random, drawn from `train.seed`."""


def derive(draft: Tree, verifier: Tree) -> dict[str, Derived]:
    """Return what a P-EAGLE spec may leave out; no mask token where the verifier has none that ends a sequence."""
    found = derive_fused({**draft, "ttt": {"steps": draft["depths"]}}, verifier)
    found["export.speculative_tokens"] = Derived(draft["depths"], "derived from draft.depths")
    if ends := verifier["eos_token_ids"]:
        found["draft.mask_token"] = Derived(ends[0], "derived from verifier.config.eos_token_ids")
    return found


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of a P-EAGLE checkpoint for resolved `draft` and `verifier.config`."""
    width = len(draft["hidden_state_layers"]) * verifier["hidden_size"]
    tensors = [*fused(draft, verifier), TensorSpec("mask_hidden", (1, 1, width))]
    return sorted(tensors, key=lambda tensor: tensor.name)


def sampled(draft: Tree) -> float:
    """Return the share of anchors kept at each depth from 1 on, added up."""
    ratio, floor = draft["sampling"]["ratio"], draft["sampling"]["floor"]
    return sum(max(ratio**depth, floor) for depth in range(1, draft["depths"]))


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row costs as `specc.train.models.peagle` computes, if every target's row is an anchor.

    As at EAGLE-3's first step, all rows go through all layers but the last, and those with a target through that as
    well. Mask rows go through all layers, where the first one's queries, keys and values are those of one row. What
    is learnt costs 6 a weight (forward, gradients of inputs and weights), the fusion of frozen states 4, and the frozen
    head 2 for the verifier and 4 for the draft.
    """
    depths, masks = draft["depths"], sampled(draft)
    size = {name: math.prod(shape) for name, shape in learnt(layout(draft, verifier)).items() if len(shape) == 2}
    fuse = size["fc.weight"]
    layers = sum(size.values()) - fuse
    last = f"layers.{draft['layers'] - 1}."
    keys = sum(size[f"{last}self_attn.{one}_proj.weight"] for one in "kv")
    tail = sum(count for name, count in size.items() if name.startswith(last)) - keys
    masked = layers - sum(size[f"layers.0.self_attn.{one}_proj.weight"] for one in "qkv")
    head = draft["vocabulary"] * verifier["hidden_size"]
    seen = attention(verifier, min(length, draft["sliding_window"] or length), draft["layers"])
    return TrainingCost(
        row=4 * fuse + 6 * (layers - tail),
        target=6 * tail + 6 * masks * masked + (1 + masks) * (3.5 * seen + 6 * head),
        guess=2 * (fuse + layers + (depths - 1) * masked) + depths * (2 * head + seen),
        checked=2 * (fuse + layers + masks * masked) + (1 + masks) * (4 * head + seen),
        kept=math.ceil(1 + masks),
    )


def fields(draft: Tree) -> dict[str, Any]:
    """Return P-EAGLE's top-level fields; vLLM hands on neither `fc_norm` nor `norm_output` of such a speculator."""
    return {**fused_fields(draft), "mask_token_id": draft["mask_token"]}


def drafted(draft: Tree) -> tuple[int, str]:
    """Return the depths that are learnt."""
    return draft["depths"], "draft.depths"


def max_speculative_tokens(draft: Tree) -> int:
    """Return the learnt depths: what a mask row means at a deeper one was never learnt."""
    return draft["depths"]


PEAGLE = Algorithm(
    name="peagle",
    title="P-EAGLE",
    section=PeagleDraft,
    derive=derive,
    layout=layout,
    layers=layers_read,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={"method": "eagle3", "parallel_drafting": True},
    vllm=everywhere,
    drafted=drafted,
    loss={"kl": 1.0},
    fields=fields,
    decoder=decoder,
    absent={"norm_before_residual": False, "norm_before_fc": False},
)
