"""DFlash2 (Z Lab 2026, github.com/z-lab/dflash): DFlash with short convolutions in the block and a candidate selector.

The block's tokens see their predecessors' states through the convolutions, and their predecessors' choice through the
selector, which ranks the most probable tokens of each place anew. Names and shapes are those of the speculators format.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from specc.core.algorithms.base import (
    Algorithm,
    Derived,
    Section,
    TensorSpec,
    TrainingCost,
    Tree,
    layers_read,
)
from specc.core.algorithms.dflash import (
    BlockDraft,
    Exponential,
    PositionWeights,
    block_fields,
    block_tensors,
    block_training,
    decoder,
    drafted,
    max_speculative_tokens,
)
from specc.core.algorithms.dflash import derive as block_derive
from specc.core.errors import SpeccError


class Convolution(Section):
    """Causal convolutions inside the block, at the input and the output of each attention and feed-forward part."""

    kernel: Annotated[int, Field(ge=1, le=16)] = 2
    """Number of tokens of the block that a convolution reads: the token itself and those before it."""
    group: Annotated[int, Field(ge=1)] = 16
    """Number of neighbouring channels that share what the token adds to the kernel; it divides the hidden size."""


class Selector(Section):
    """How the token before it bears on the choice among a place's most probable tokens."""

    rank: Annotated[int, Field(ge=1)] = 256
    """Width of the vectors that tell which token goes with which."""
    candidates: Annotated[int, Field(ge=2, le=256)] = 16
    """Number of most probable tokens of each place among which the selector chooses."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """What the selector's loss counts for beside the draft's own."""


class DFlash2Draft(BlockDraft):
    """DFlash2: DFlash with convolutions inside the block, and a choice that depends on the token before."""

    algorithm: Literal["dflash2"]
    """Algorithm of the draft model; it decides which other keys this section has."""
    vocabulary: Literal["full"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, frozen
    """Tokens the draft can propose: all of the verifier's, since the selector has a vector for each."""
    block_size: Annotated[int, Field(ge=2, le=64)] = 8
    """Number of tokens of a block, the one that it starts from included."""
    sample_from_anchor: Literal[False] = False  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, frozen
    """Whether the token that a block starts from proposes the one after it: no engine runs such a DFlash2."""
    position_weights: PositionWeights = Exponential.model_construct()
    """What the losses of a block's tokens count for; normalised by their sum."""
    convolution: Convolution = Convolution.model_construct()
    """Convolutions inside the block."""
    selector: Selector = Selector.model_construct()
    """Choice among each place's most probable tokens."""


def groups(draft: Tree, verifier: Tree) -> int:
    """Return the number of groups of channels; raises `SpeccError` where the hidden size is no multiple of a group."""
    hidden, group = verifier["hidden_size"], draft["convolution"]["group"]
    if hidden % group:
        raise SpeccError(
            f"`draft.convolution.group` is {group}, which does not divide the verifier's hidden size, {hidden}",
            where="draft.convolution.group",
            id="E0315",
            hint=f"use {max(size for size in range(1, group) if hidden % size == 0)}",
        )
    return hidden // group


def derive(draft: Tree, verifier: Tree) -> dict[str, Derived]:
    """Return what a DFlash2 spec may leave out; raises `SpeccError` for a part that does not fit the verifier."""
    groups(draft, verifier)
    candidates, vocab = draft["selector"]["candidates"], verifier["vocab_size"]
    if candidates > vocab:
        raise SpeccError(
            f"`draft.selector.candidates` is {candidates}, and the verifier has {vocab} tokens",
            where="draft.selector.candidates",
            id="E0315",
            hint=f"use {vocab} or fewer",
        )
    return block_derive(draft, verifier)


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of a DFlash2 checkpoint for resolved `draft` and `verifier.config`."""
    hidden, vocab = verifier["hidden_size"], verifier["vocab_size"]
    kernel, rank = draft["convolution"]["kernel"], draft["selector"]["rank"]
    tensors = [
        *block_tensors(draft, verifier),
        TensorSpec("candidate_selector.hidden_projection.weight", (rank, hidden)),
        TensorSpec("candidate_selector.predecessor_codebook", (vocab, rank), by_token=True),
        TensorSpec("candidate_selector.successor_codebook", (vocab, rank), by_token=True),
    ]
    for index in range(draft["layers"]):
        for part in ("attention_conv", "mlp_conv"):
            name = f"layers.{index}.{part}"
            tensors += [
                TensorSpec(f"{name}.base_kernel", (2, kernel, hidden)),
                TensorSpec(f"{name}.kernel_projection.weight", (2 * kernel * groups(draft, verifier), hidden)),
            ]
    return sorted(tensors, key=lambda tensor: tensor.name)


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row costs as `specc.train.models.dflash2` computes: DFlash's, the convolutions and the selector.

    A slot makes the kernels of both convolutions of each layer and multiplies its values with them. For a target, the
    verifier's choice and the candidates are looked up in two further products with the head, without gradients, and
    the candidates are scored by the state and by the selector.
    """
    hidden, rank, candidates = verifier["hidden_size"], draft["selector"]["rank"], draft["selector"]["candidates"]
    kernel = draft["convolution"]["kernel"]
    convolution = 2 * draft["layers"] * 2 * kernel * (groups(draft, verifier) + 1) * hidden
    tokens, _ = drafted(draft)
    head = verifier["vocab_size"] * hidden
    # The embeddings' own gradients are sums over rows, but as long as the vocabulary they cost nothing beside the head.
    choice = rank * hidden + candidates * rank
    base = block_training(draft, verifier, length, convolution)
    return replace(
        base,
        target=base.target + tokens * (4 * head + 4 * candidates * hidden + 6 * choice),
        guess=base.guess + tokens * 2 * (candidates * hidden + choice),
        checked=base.checked + tokens * (4 * head + 2 * candidates * hidden + 2 * choice),
    )


def fields(draft: Tree) -> dict[str, Any]:
    """Return DFlash2's top-level fields."""
    return {
        **block_fields(draft),
        "conv_group_size": draft["convolution"]["group"],
        "conv_kernel_size": draft["convolution"]["kernel"],
        "selector_rank": draft["selector"]["rank"],
        "selector_top_k": draft["selector"]["candidates"],
    }


DFLASH2 = Algorithm(
    name="dflash2",
    title="DFlash2",
    section=DFlash2Draft,
    derive=derive,
    layout=layout,
    layers=layers_read,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={"method": "dflash"},
    vllm=lambda _: ("cuda",),
    drafted=drafted,
    loss={"kl": 1.0},
    fields=fields,
    decoder=decoder,
    absent={"sample_from_anchor": False, "sliding_window_non_causal": True},
)
