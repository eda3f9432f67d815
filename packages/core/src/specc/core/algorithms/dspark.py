"""DSpark (Cheng et al. 2026, github.com/deepseek-ai/DeepSpec): DFlash, with a bias and a confidence for each token.

A block is computed at once. Then its tokens are chosen one after another, each biased by the one chosen before it.
"""

import math
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
    causal,
    derive,
    drafted,
    max_speculative_tokens,
)
from specc.core.algorithms.dflash import decoder as block_decoder


class Markov(Section):
    """The bias that the token before adds to a token's logits, through a bottleneck."""

    type: Literal["vanilla", "gated", "rnn"] = "vanilla"
    """What the bias is made from: `vanilla`, the token before alone; `gated`, that token through a gate which reads
    the draft's state too; `rnn`, all of the block's tokens before, through a recurrent state. vLLM runs `vanilla`
    alone."""
    rank: Annotated[int, Field(ge=1)] = 256
    """Width of the bottleneck, between the token before and the draft vocabulary."""


class Confidence(Section):
    """The head that predicts each draft token's chance of acceptance."""

    with_markov: bool = True
    """Whether it reads the embedding of the token before beside the draft's state."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of its loss, the binary cross entropy with the chance of acceptance, beside `train.loss`."""


class DSparkDraft(BlockDraft):
    """DSpark: a block of tokens at once, then each one biased by the token before it."""

    algorithm: Literal["dspark"]
    """Algorithm of the draft model; it decides which other keys this section has."""
    block_size: Annotated[int, Field(ge=2, le=64)] = 8
    """Number of tokens of a block, the one that it starts from included."""
    sample_from_anchor: bool = True
    """Whether the token that a block starts from proposes the one after it: a block then proposes `block_size` tokens
    instead of one less."""
    position_weights: PositionWeights = Exponential.model_construct()
    """What the losses of a block's tokens count for; normalised by their sum."""
    markov: Markov = Markov.model_construct()
    """The bias that the token before adds to a token's logits."""
    confidence: Confidence | None = Confidence.model_construct()
    """The head that predicts each draft token's chance of acceptance; `null` trains none."""


def heads(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return the tensors of the Markov head and of the confidence head, for resolved `draft` and `verifier.config`."""
    hidden, rank = verifier["hidden_size"], draft["markov"]["rank"]
    tensors = [
        TensorSpec("markov_head.markov_w1.weight", (verifier["vocab_size"], rank), by_token=True),
        TensorSpec("markov_head.markov_w2.weight", (vocabulary_of(draft, verifier), rank), by_token=True),
    ]
    match draft["markov"]["type"]:
        case "gated":
            tensors += _linear("markov_head.gate_proj", hidden + rank, rank)
        case "rnn":
            tensors += _linear("markov_head.joint_proj", 2 * rank + hidden, 3 * rank)
        case _:
            pass
    if draft["confidence"] is not None:
        reads = hidden + (rank if draft["confidence"]["with_markov"] else 0)
        tensors += _linear("confidence_head.proj", reads, 1)
    return tensors


def _linear(name: str, reads: int, makes: int) -> list[TensorSpec]:
    return [TensorSpec(f"{name}.weight", (makes, reads)), TensorSpec(f"{name}.bias", (makes,))]


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of a DSpark checkpoint for resolved `draft` and `verifier.config`."""
    tensors = [*block_tensors(draft, verifier), *heads(draft, verifier)]
    return sorted(tensors, key=lambda tensor: tensor.name)


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row costs as `specc.train.models.dspark` computes: DFlash's, and the two heads'.

    The bias is added inside the loss, whose backward pass makes all logits a second time: 4 more for each weight of the
    frozen head, and 8 for each of the readout from the bottleneck (twice forward, once for either gradient).
    """
    slots, (tokens, _) = draft["block_size"], drafted(draft)
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in heads(draft, verifier) if len(tensor.shape) == 2}
    readout = sizes.pop("markov_head.markov_w2.weight")
    sizes.pop("markov_head.markov_w1.weight")  # rows are looked up, not multiplied
    head = vocabulary_of(draft, verifier) * verifier["hidden_size"]
    cost, extra = block_training(draft, verifier, length), sum(sizes.values())
    proposed = slots * 2 * extra + tokens * 2 * readout
    return replace(
        cost,
        target=cost.target + slots * 6 * extra + tokens * (4 * head + 8 * readout),
        guess=cost.guess + proposed,
        checked=cost.checked + proposed,
    )


def fields(draft: Tree) -> dict[str, Any]:
    """Return DSpark's top-level fields."""
    confidence = draft["confidence"]
    return {
        **block_fields(draft),
        "confidence_head_with_markov": confidence is not None and confidence["with_markov"],
        "enable_confidence_head": confidence is not None,
        "markov_head_type": draft["markov"]["type"],
        "markov_rank": draft["markov"]["rank"],
    }


def decoder(draft: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the decoder's configuration.

    Of a DSpark draft vLLM reads no `sliding_window_non_causal` and takes windows for causal, unless the decoder's
    configuration says otherwise.
    """
    windowed = draft["sliding_window"] is not None
    own = {"dflash_config": {"causal": causal(draft)}} if windowed else {}
    return {**block_decoder(draft, verifier), **own}


def vllm(draft: Tree) -> tuple[str, ...]:
    """Return where vLLM 0.32 runs a draft: it has no kernels for a CPU, and of the Markov heads it knows one."""
    return ("cuda",) if draft["markov"]["type"] == "vanilla" else ()


DSPARK = Algorithm(
    name="dspark",
    title="DSpark",
    section=DSparkDraft,
    derive=derive,
    layout=layout,
    layers=layers_read,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={"method": "dspark"},
    vllm=vllm,
    drafted=drafted,
    loss={"kl": 1.0},
    fields=fields,
    decoder=decoder,
    # Without `sample_from_anchor` and `sliding_window_non_causal`: vLLM and the format's own library disagree on them.
    absent={"enable_confidence_head": False, "confidence_head_with_markov": False},
)
