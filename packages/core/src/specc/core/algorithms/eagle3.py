"""EAGLE-3 (Li et al. 2025, arXiv:2503.01840): one decoder layer over fused hidden states of three depths."""

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
    decoder_config,
    decoder_layer,
    everywhere,
    layers_read,
    learnt,
    vocabulary_map,
)

DEFAULT_VOCABULARY = 32000
_MEMORY = ("k_proj.weight", "v_proj.weight")
"""Names of the tensors that make keys and values."""


class TestTimeTraining(Section):
    """How the draft learns to go on from its own states."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    steps: Annotated[int, Field(ge=1, le=16)] = 3
    """Number of draft steps that are unrolled in training; the longest draft that the speculator is trained for."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Weight of step k in the loss is decay^k, with k from 0."""


class Eagle3Draft(DraftSection):
    """EAGLE-3: a small decoder that reads some of the verifier's hidden states and the next token."""

    algorithm: Literal["eagle3"]
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
    fc_norm: bool = False
    """Whether each of the hidden states has an RMS norm of its own before fusion; excludes `norm_before_fc`."""
    norm_output: bool = True
    """Whether the next draft step reads the state after the final norm (EAGLE 3.1) in place of the one before."""
    sliding_window: Annotated[int, Field(ge=1)] | None = None
    """Number of most recent positions that the draft's attention sees. Default: all."""
    intermediate_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the draft's feed-forward layers. Default: the verifier's."""
    ttt: TestTimeTraining = TestTimeTraining.model_construct()
    """Training-time test: unrolled draft steps and their weights."""
    init: Init | None = None
    """Weights to start from. Default: random, drawn from `train.seed`."""


def derive(draft: Tree, verifier: Tree) -> dict[str, Derived]:
    """Return what an EAGLE-3 spec may leave out."""
    count, size = verifier["num_hidden_layers"], verifier["vocab_size"]
    layers = [2, count // 2, count - 3]
    vocabulary = size if draft["vocabulary"] == "full" else min(DEFAULT_VOCABULARY, size)
    return {
        "draft.hidden_state_layers": Derived(layers, f"derived from verifier.config.num_hidden_layers ({count})"),
        "draft.vocabulary": Derived(vocabulary, f"derived from verifier.config.vocab_size ({size})"),
        "draft.intermediate_size": Derived(
            verifier["intermediate_size"], "derived from verifier.config.intermediate_size"
        ),
        "export.speculative_tokens": Derived(draft["ttt"]["steps"], "derived from draft.ttt.steps"),
    }


def fused(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of a decoder over fused states, for resolved `draft` and `verifier.config`, unsorted."""
    hidden, vocab = verifier["hidden_size"], verifier["vocab_size"]
    aux = len(draft["hidden_state_layers"])
    tensors = [
        TensorSpec("embed_tokens.weight", (vocab, hidden), origin="verifier"),
        TensorSpec("fc.weight", (hidden, aux * hidden)),
        TensorSpec("layers.0.hidden_norm.weight", (hidden,)),
        TensorSpec("norm.weight", (hidden,)),
        TensorSpec("lm_head.weight", (draft["vocabulary"], hidden), origin="verifier"),
        *vocabulary_map(draft, verifier),
    ]
    if draft["norm_before_fc"]:
        tensors.append(TensorSpec("input_norm.weight", (aux * hidden,)))
    for index in range(draft["layers"]):
        width, norms = 2 * hidden if index == 0 else hidden, draft["decoder"] == "qwen3"
        tensors += decoder_layer(f"layers.{index}", verifier, draft["intermediate_size"], width=width, head_norms=norms)
    return tensors


def layout(draft: Tree, verifier: Tree) -> list[TensorSpec]:
    """Return every tensor of an EAGLE-3 checkpoint for resolved `draft` and `verifier.config`."""
    norms = range(len(draft["hidden_state_layers"]) if draft["fc_norm"] else 0)
    tensors = [
        *fused(draft, verifier),
        *(TensorSpec(f"fc_norm.{index}.weight", (verifier["hidden_size"],)) for index in norms),
    ]
    return sorted(tensors, key=lambda tensor: tensor.name)


def training(draft: Tree, verifier: Tree, length: float) -> TrainingCost:
    """Return what a row costs as `specc.train.models.eagle3` computes.

    At the first step all rows go through all layers but the last, of which those without a target make keys and values
    alone; later steps have the rows with a target. What is learnt costs 6 a weight (forward, gradients of inputs and
    weights), the fusion of frozen states 4, and the frozen head 2 for the verifier and 4 for each step of the draft.
    """
    steps = draft["ttt"]["steps"]
    shapes = learnt(layout(draft, verifier)).items()
    size = {name: math.prod(shape) for name, shape in shapes if len(shape) == 2}
    fuse = size["fc.weight"]
    layers = sum(size.values()) - fuse
    last = f"layers.{draft['layers'] - 1}."
    tail = sum(count for name, count in size.items() if name.startswith(last) and not name.endswith(_MEMORY))
    head = draft["vocabulary"] * verifier["hidden_size"]
    seen = attention(verifier, min(length, draft["sliding_window"] or length), draft["layers"])
    guess = 2 * (fuse + steps * (layers + head)) + steps * seen
    return TrainingCost(
        row=(6 if draft["fc_norm"] else 4) * fuse + 6 * (layers - tail),
        target=6 * (tail + (steps - 1) * layers) + steps * 3.5 * seen + (2 + 4 * steps) * head,
        guess=guess,
        checked=guess + 2 * head,
        kept=steps,
    )


def fused_fields(draft: Tree) -> dict[str, Any]:
    """Return the top-level fields of a speculator that is a decoder over fused states."""
    return {
        "draft_vocab_size": draft["vocabulary"],
        "eagle_aux_hidden_state_layer_ids": list(draft["hidden_state_layers"]),
        "embed_requires_grad": False,
        "norm_before_fc": draft["norm_before_fc"],
        "norm_before_residual": draft["norm_before_residual"],
        "target_hidden_size": None,
    }


def fields(draft: Tree) -> dict[str, Any]:
    """Return EAGLE-3's top-level fields."""
    return {**fused_fields(draft), "fc_norm": draft["fc_norm"], "norm_output": draft["norm_output"]}


def decoder(draft: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the decoder's configuration; vLLM reads the number of states that are fused only where it is told."""
    count = len(draft["hidden_state_layers"])
    return {**decoder_config(draft, verifier), **({} if count == 3 else {"num_aux_hidden_states": count})}


def drafted(draft: Tree) -> tuple[int, str]:
    """Return the steps that are unrolled in training."""
    return draft["ttt"]["steps"], "draft.ttt.steps"


def max_speculative_tokens(draft: Tree) -> int:
    """Return 4 times the trained steps: an autoregressive draft can be asked for more than it was trained for."""
    return 4 * draft["ttt"]["steps"]


EAGLE3 = Algorithm(
    name="eagle3",
    title="EAGLE-3",
    section=Eagle3Draft,
    derive=derive,
    layout=layout,
    layers=layers_read,
    training=training,
    max_speculative_tokens=max_speculative_tokens,
    serving={"method": "eagle3"},
    vllm=everywhere,
    drafted=drafted,
    loss={"kl": 1.0},
    fields=fields,
    decoder=decoder,
    absent={"norm_before_residual": True, "norm_before_fc": False, "fc_norm": False, "norm_output": False},
)
