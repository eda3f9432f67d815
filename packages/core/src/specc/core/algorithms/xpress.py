"""xPress (arXiv:2608.02438): DFlash and a small head that refines a whole block at once, in a few passes.

Names and shapes are those of the speculators format, in which it is called `xpress`.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from specc.core.algorithms.base import (
    Algorithm,
    Section,
    TensorSpec,
    TrainingCost,
    Tree,
    layers_read,
    vocabulary_of,
)
from specc.core.algorithms.dflash import (
    BlockDraft,
    Exponential,
    PositionWeights,
    block_fields,
    block_tensors,
    block_training,
    decoder,
    derive,
    drafted,
    max_speculative_tokens,
)


class Refiner(Section):
    """The head that adds to each place's logits what follows from the tokens before it, and how it is trained."""

    rank: Annotated[int, Field(ge=1)] = 256
    """Width of the refiner."""
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] = 2
    """Width of the refiner's feed-forward part, in multiples of `rank`."""
    passes: Annotated[int, Field(ge=1, le=64)] = 6
    """Number of times that a draft is refined when it is served, each time from all of its own tokens at once."""
    rounds: Annotated[int, Field(ge=0, le=16)] = 3
    """Number of passes over its own tokens that the draft learns from in training, beside one over the right ones."""
    own_weight: Annotated[float, Field(ge=0)] = 0.3
    """What the mean loss of those rounds counts for beside the one over the right tokens."""
    base_weight: Annotated[float, Field(ge=0)] = 0.6
    """What the loss of the logits without the refiner counts for: each draft starts from them."""


class XPressDraft(BlockDraft):
    """xPress: DFlash with a refiner, which makes the tokens of a block go together."""

    algorithm: Literal["xpress"]
    """Algorithm of the draft model; it decides which other keys this section has."""
    position_weights: PositionWeights = Exponential.model_construct()
    """What the losses of a block's tokens count for; normalised by their sum."""
    refiner: Refiner = Refiner.model_construct()
    """The refiner and how it is trained."""


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of an xPress checkpoint for resolved `draft` and `verifier.config`."""
    hidden, vocab, block = verifier["hidden_size"], verifier["vocab_size"], draft["block_size"]
    rank = draft["refiner"]["rank"]
    inner = draft["refiner"]["mlp_ratio"] * rank
    shapes = {
        "down_g.weight": (rank, hidden),
        "down_h.weight": (rank, hidden),
        "in_proj.weight": (rank, 3 * rank),
        "mix_l": (rank, block, block),
        "mlp_down.weight": (rank, inner),
        "mlp_gate.weight": (inner, rank),
        "mlp_up.weight": (inner, rank),
        "readout.weight": (vocabulary_of(draft, verifier), rank),
        "token_embed.weight": (vocab, rank),
    }
    refiner = [
        TensorSpec(f"refiner_head.{name}", shape, by_token=name in ("readout.weight", "token_embed.weight"))
        for name, shape in shapes.items()
    ]
    return sorted([*block_tensors(draft, verifier), *refiner], key=lambda tensor: tensor.name)


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row costs as `specc.train.models.xpress` computes: DFlash's, and the refiner's passes.

    Slots are read once, and refined over the right tokens and once a round. For a target, each of these and the base
    have products with head and readout of their own, which are made again for the gradients, as is the verifier's. The
    tokens of the rounds are looked up in further ones without gradients, the head's but once.
    """
    refiner, hidden, slots = draft["refiner"], verifier["hidden_size"], draft["block_size"]
    rank, rounds = refiner["rank"], refiner["rounds"]
    tokens, _ = drafted(draft)
    vocabulary = vocabulary_of(draft, verifier)
    head, readout = vocabulary * hidden, vocabulary * rank
    once, one = 2 * rank * hidden, rank * (3 * rank + slots + 3 * refiner["mlp_ratio"] * rank)
    refined, all_passes = 1 + rounds, 2 + rounds
    base = block_training(draft, verifier, length, once + refined * one)
    lookups = slots * 2 * (head + (rounds - 1) * (readout + one)) if rounds else 0
    return replace(
        base,
        target=base.target + tokens * ((6 * all_passes - 2) * head + 8 * all_passes * readout) + lookups,
        guess=base.guess + slots * 2 * (refiner["passes"] * (readout + one) - refined * one),
        checked=base.checked + tokens * 2 * (refined * head + all_passes * readout) + lookups,
    )


def fields(draft: Tree) -> dict[str, Any]:
    """Return xPress' top-level fields."""
    return {
        **block_fields(draft),
        "num_jacobi_passes": draft["refiner"]["passes"],
        "xpress_mlp_ratio": draft["refiner"]["mlp_ratio"],
        "xpress_rank": draft["refiner"]["rank"],
    }


XPRESS = Algorithm(
    name="xpress",
    title="xPress",
    section=XPressDraft,
    derive=derive,
    layout=layout,
    layers=layers_read,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={},
    vllm=lambda _: (),
    drafted=drafted,
    loss={"ce": 0.1, "tv": 0.9},
    fields=fields,
    decoder=decoder,
    absent={
        "num_jacobi_passes": 6,
        "sample_from_anchor": False,
        "sliding_window_non_causal": True,
        "xpress_mlp_ratio": 2,
        "xpress_rank": 256,
    },
)
