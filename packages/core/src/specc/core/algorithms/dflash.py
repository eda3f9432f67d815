"""DFlash (Chen et al. 2026, arXiv:2602.06036): a block of tokens drafted at once from the verifier's states.

What is here holds for the whole family of block drafts: others add tensors, fields and knobs to these.
"""

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

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
    decoder_config,
    decoder_layer,
    layers_read,
    learnt,
    vocabulary_map,
    vocabulary_of,
)

CONTEXT = ("k_proj.weight", "v_proj.weight")
"""Names of the tensors that make keys and values, of a block's tokens and of the context alike."""


class DPace(Section):
    """D-PACE (arXiv:2605.18810): weights that follow what a place adds to the expected number of accepted tokens."""

    name: Literal["dpace"] = "dpace"
    """Kind of weights: `dpace`, `exponential` or `uniform`."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of 1 that is mixed into each token's probability: 1 makes the weights fall in a line."""


class Exponential(Section):
    """Weights that fall exponentially along the block."""

    name: Literal["exponential"] = "exponential"
    """Kind of weights: `dpace`, `exponential` or `uniform`."""
    gamma: Annotated[float, Field(gt=0)] = 4.0
    """Tokens after which the weight has fallen to 1/e."""


class Uniform(Section):
    """The same weight for every token of a block."""

    name: Literal["uniform"] = "uniform"
    """Kind of weights: `dpace`, `exponential` or `uniform`."""


def _weights(value: Any) -> Any:
    """Name the weights that are meant where none are named."""
    return {"name": "dpace", **cast("dict[str, Any]", value)} if isinstance(value, dict) else value


PositionWeights = Annotated[
    Annotated[DPace | Exponential | Uniform, Field(discriminator="name")], BeforeValidator(_weights)
]


class BlockDraft(DraftSection):
    """What all block drafts have: a decoder that fills a block of masks, reading the verifier's states as context."""

    layers: Annotated[int, Field(ge=1, le=16)] = 5
    """Number of decoder layers of the draft."""
    vocabulary: Annotated[int, Field(ge=2)] | Literal["full"] | None = None
    """Number of tokens the draft can propose: the most frequent of the training data. `full` keeps the verifier's
    vocabulary. Default: `full`."""
    hidden_state_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=16)] | None = None
    """The verifier layers whose input hidden states the draft reads; id k is the input of layer k.
    Default: 2, the middle, and the third from the end."""
    block_size: Annotated[int, Field(ge=2, le=64)] = 16
    """Number of tokens of a block, the one that it starts from included."""
    sample_from_anchor: bool = False
    """Whether the token that a block starts from proposes the one after it: a block then proposes `block_size` tokens
    instead of one less."""
    sliding_window: Annotated[int, Field(ge=1)] | None = None
    """Number of most recent positions that the draft's attention sees. Default: all."""
    sliding_window_causal: bool = False
    """Whether a token of a block sees only those before it; of no effect without `sliding_window`."""
    intermediate_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the draft's feed-forward layers. Default: the verifier's."""
    mask_token: Annotated[int, Field(ge=0)] | None = None
    """Id of the verifier's token whose embedding stands for a token that is still to be drafted.
    Default: the verifier's first end-of-sequence token."""
    anchors: Annotated[int, Field(ge=1)] = 512
    """Number of blocks that an optimizer step learns from at most; each document has one at least."""
    position_weights: PositionWeights = DPace.model_construct()
    """What the losses of a block's tokens count for; normalised by their sum."""
    init: Init | None = None
    """Weights to start from. Default: random, drawn from `train.seed`."""


class DFlashDraft(BlockDraft):
    """DFlash: a small decoder that proposes a whole block of tokens at once."""

    algorithm: Literal["dflash"]
    """Algorithm of the draft model; it decides which other keys this section has."""
    sample_from_anchor: Literal[False] = False  # pyright: ignore[reportIncompatibleVariableOverride]
    """Whether the token that a block starts from proposes the one after it: vLLM serves no such DFlash draft."""


def derive(draft: Tree, verifier: Tree) -> dict[str, Derived]:
    """Return what the spec of a block draft may leave out."""
    count, size, ends = verifier["num_hidden_layers"], verifier["vocab_size"], verifier["eos_token_ids"]
    tokens, _ = drafted(draft)
    found = {
        "draft.hidden_state_layers": Derived(
            [2, count // 2, count - 3], f"derived from verifier.config.num_hidden_layers ({count})"
        ),
        "draft.vocabulary": Derived(size, f"derived from verifier.config.vocab_size ({size})"),
        "draft.intermediate_size": Derived(
            verifier["intermediate_size"], "derived from verifier.config.intermediate_size"
        ),
        "export.speculative_tokens": Derived(tokens, "derived from draft.block_size"),
    }
    if ends:
        found["draft.mask_token"] = Derived(ends[0], "derived from verifier.config.eos_token_ids")
    return found


def block_tensors(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return the tensors that every block draft has, for resolved `draft` and `verifier.config`, unsorted.

    Embeddings are the verifier's, and saved only where its embedding layer multiplies: vLLM does not do that in all of
    its classes. Its head is saved where the vocabulary is reduced.
    """
    hidden, aux = verifier["hidden_size"], len(draft["hidden_state_layers"])
    mapped = vocabulary_map(draft, verifier)
    tensors = [
        TensorSpec("fc.weight", (hidden, aux * hidden)),
        TensorSpec("hidden_norm.weight", (hidden,)),
        TensorSpec("norm.weight", (hidden,)),
        *mapped,
    ]
    if _multiplies(verifier):
        tensors.append(TensorSpec("embed_tokens.weight", (verifier["vocab_size"], hidden), origin="verifier"))
    if mapped:
        tensors.append(TensorSpec("lm_head.weight", (vocabulary_of(draft, verifier), hidden), origin="verifier"))
    for index in range(draft["layers"]):
        tensors += decoder_layer(f"layers.{index}", verifier, draft["intermediate_size"], head_norms=True)
    return tensors


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of a DFlash checkpoint for resolved `draft` and `verifier.config`."""
    return sorted(block_tensors(draft, verifier), key=lambda tensor: tensor.name)


def block_training(draft: Tree, verifier: Tree, length: float, extra: float = 0) -> TrainingCost:
    """Return what a row costs as `specc.train.models.dflash` computes.

    A row of context is fused and makes keys and values in every layer. A row that has a target may be the anchor of a
    block, all of whose slots go through all layers; `anchors` bounds how many are, in a step. What is learnt costs 6 a
    weight, the fusion of frozen states 4 and the frozen head 2 for the verifier and 4 for the draft. `extra` is what a
    slot passes through besides, in weights. Validation drafts from every row.
    """
    slots, (tokens, _) = draft["block_size"], drafted(draft)
    size = {name: math.prod(shape) for name, shape in learnt(block_tensors(draft, verifier)).items() if len(shape) == 2}
    fuse = size["fc.weight"]
    layers = sum(size.values()) - fuse
    memory = sum(count for name, count in size.items() if name.endswith(CONTEXT))
    head = vocabulary_of(draft, verifier) * verifier["hidden_size"]
    # A slot sees half of the document in the mean, and its block.
    seen = attention(verifier, min(length, draft["sliding_window"] or length) + 2 * slots, draft["layers"])
    guess = 2 * (fuse + memory) + slots * (2 * (layers + extra) + seen) + tokens * 2 * head
    block = slots * (6 * (layers + extra) + 3.5 * seen) + tokens * 6 * head
    return TrainingCost(
        row=4 * fuse + 6 * memory,
        target=block,
        guess=guess,
        checked=slots * (2 * (layers + extra) + seen) + tokens * 4 * head,
        kept=slots,
        most=draft["anchors"],
    )


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row of DFlash's training costs."""
    return block_training(draft, verifier, length)


def block_fields(draft: Tree) -> dict[str, Any]:
    """Return the top-level fields that every block draft has.

    vLLM takes `sliding_window_non_causal` for the whole draft, windows or none: without a window it must be true.
    """
    return {
        "aux_hidden_state_layer_ids": list(draft["hidden_state_layers"]),
        "block_size": draft["block_size"],
        "draft_vocab_size": draft["vocabulary"],
        "mask_token_id": draft["mask_token"],
        "sample_from_anchor": draft["sample_from_anchor"],
        "sliding_window_non_causal": not causal(draft),
        "target_hidden_size": None,
    }


def causal(draft: Tree) -> bool:
    """Return whether a token of a block sees only those before it."""
    return draft["sliding_window"] is not None and draft["sliding_window_causal"]


def decoder(draft: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the decoder's configuration, Qwen3's in the whole family; it tells that embeddings are saved, and why."""
    scale = {"embedding_scale": verifier["embedding_scale"]} if _multiplies(verifier) else {}
    return {**decoder_config({**draft, "decoder": "qwen3"}, verifier), **scale}


def _multiplies(verifier: Tree) -> bool:
    """Return whether what the verifier's embedding layer gives is not what its weights are."""
    return verifier.get("embedding_scale", 1.0) != 1.0


def drafted(draft: Tree) -> tuple[int, str]:
    """Return the number of tokens that a block proposes."""
    return draft["block_size"] - (not draft["sample_from_anchor"]), "draft.block_size"


def max_speculative_tokens(draft: Tree) -> int:
    """Return the tokens of a block: a longer one has places that the draft has never seen."""
    return drafted(draft)[0]


def vllm(draft: Tree) -> tuple[str, ...]:
    """Return where vLLM 0.32 runs a draft rightly: on a CPU one of a single layer.

    There it norms the context's keys of every layer with the weight of the first layer's `k_norm`.
    """
    return ("cuda",) if draft["layers"] > 1 else ("cpu", "cuda")


DFLASH = Algorithm(
    name="dflash",
    title="DFlash",
    section=DFlashDraft,
    derive=derive,
    layout=layout,
    layers=layers_read,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={"method": "dflash"},
    # vLLM 0.32 runs it on a CPU too, but norms the context's keys of all layers by the first layer's weights there.
    vllm=vllm,
    drafted=drafted,
    loss={"ce": 1.0},
    fields=block_fields,
    decoder=decoder,
    absent={"sample_from_anchor": False, "sliding_window_non_causal": True},
)
