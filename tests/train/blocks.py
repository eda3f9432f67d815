"""Block drafts for tests: random ones, documents to draft from, and what a training step counts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specc.train.losses import Head
from specc.train.models import Frozen, Reading, build, trained
from train import plain_dflash
from train.world import HIDDEN, SMALL, VERIFIER, VOCABULARY, stream

F64 = torch.float64
BLOCK: dict[str, Any] = {
    "layers": 2, "vocabulary": VOCABULARY, "hidden_state_layers": [2, 3, 4], "block_size": 4,
    "sample_from_anchor": False, "sliding_window": None, "sliding_window_causal": False, "intermediate_size": 96,
    "mask_token": 2, "anchors": 512, "position_weights": {"name": "exponential", "gamma": 4.0}, "init": None,
}  # fmt: skip
SECTIONS: dict[str, dict[str, Any]] = {
    name: BLOCK | {"algorithm": name} | own
    for name, own in {
        "dflash": {"vocabulary": SMALL, "position_weights": {"name": "dpace", "alpha": 0.5}},
        "dflash2": {"convolution": {"kernel": 2, "group": 16}, "selector": {"rank": 8, "candidates": 6, "weight": 1.0}},
        "dspark": {"vocabulary": SMALL, "sample_from_anchor": True, "markov": {"type": "vanilla", "rank": 16},
                   "confidence": {"with_markov": True, "weight": 1.0}},
        "xpress": {"vocabulary": SMALL,
                   "refiner": {"rank": 12, "mlp_ratio": 2, "passes": 6, "rounds": 3, "own_weight": 0.3,
                               "base_weight": 0.6}},
    }.items()
}  # fmt: skip
"""The draft section of each algorithm."""
LOUDER: dict[str, tuple[float, tuple[str, ...]]] = {
    "dflash2": (10, ("candidate_selector.predecessor_codebook", "candidate_selector.successor_codebook")),
    "xpress": (5, tuple(f"refiner_head.{name}" for name in
                        ("mix_l", "in_proj.weight", "mlp_down.weight", "readout.weight", "token_embed.weight"))),
}  # fmt: skip
"""What random weights are multiplied with, so that a head beside the draft's own has its say."""


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, fp64."""
    return torch.randn(*shape, generator=stream(seed), dtype=F64)


def make(draft: Mapping[str, Any], dtype: torch.dtype = F64) -> tuple[Any, dict[str, Tensor], Tensor, Tensor]:
    """A random draft, and its weights, embeddings and head in fp64. Draft token i is verifier token 2 i, or i."""
    weights = {
        spec.name: random(*spec.shape, seed=index) * (0.1 if len(spec.shape) > 1 else 0.3) + (len(spec.shape) == 1)
        for index, spec in enumerate(trained(draft, VERIFIER))
    }
    factor, names = LOUDER.get(draft["algorithm"], (1.0, ()))
    for name in names:
        weights[name] *= factor
    size = draft["vocabulary"]
    embed, head = random(VOCABULARY, HIDDEN, seed=90), random(size, HIDDEN, seed=91) * 0.3
    ends = Frozen(embed.to(dtype), torch.ones(HIDDEN), 1e-5, Head(head.to(dtype)), embed)
    model: Any = build(draft, VERIFIER, weights, ends, torch.arange(size) if size < VOCABULARY else None)
    if dtype == F64:
        model.rotary.frequencies = 10000.0 ** -(torch.arange(8, dtype=F64) / 8)
    return model, weights, embed, head


def document(length: int, seed: int, aux: int = 3) -> Reading:
    """A document of random tokens and states."""
    ids = torch.randint(VOCABULARY, (length,), generator=stream(seed))
    return Reading(ids, random(length, aux, HIDDEN, seed=seed), random(length, HIDDEN, seed=seed + 1))


def masked(length: int, *written: tuple[int, int]) -> Tensor:
    """The loss mask of a document whose places `(first, end)` the assistant wrote."""
    mask = torch.zeros(length, dtype=torch.bool)
    for first, end in written:
        mask[first:end] = True
    return mask


def until(reading: Reading, place: int) -> Reading:
    """A document as it is when the token at `place` is the newest one."""
    return Reading(reading.ids[: place + 1], reading.aux[: place + 1], reading.last[: place + 1])


def batch(model: Any, documents: Sequence[Reading], masks: Sequence[Tensor]) -> Any:
    """Choose and pack; the last states are taken for normed ones."""
    return model.pack(documents, model.choose(masks, stream(0)), lambda states: states.to(model.embed_tokens.dtype))


def counted(documents: Sequence[Reading], masks: Sequence[Tensor], tokens: int) -> Iterator[tuple[Reading, int, int]]:
    """Yield each block of up to `tokens` proposals: its document, its anchor's place, and how many of them count."""
    for reading, mask in zip(documents, masks, strict=True):
        for place in range(1, len(reading) - 1):
            last = place
            while last + 1 < len(reading) and mask[place : last + 2].all():
                last += 1  # to the end of the anchor's own response
            if last > place:
                yield reading, place, min(last - place, tokens)


def compare(theirs: Tensor, ours: Tensor) -> dict[str, Tensor]:
    """Losses of two rows of logits, by the textbook."""
    log_p, log_q = theirs.log_softmax(0), ours.log_softmax(0)
    return {
        "kl": (log_p.exp() * (log_p - log_q)).sum(),
        "ce": -log_q[log_p.argmax()],
        "tv": 1 - torch.minimum(log_p.exp(), log_q.exp()).sum(),
    }


def place_weights(kind: Mapping[str, Any], ces: Sequence[Tensor]) -> Tensor:
    """What the losses of a block's tokens count for, given each one's cross entropy."""
    if kind["name"] == "dpace":
        return plain_dflash.dpace(torch.stack([(1 - kind["alpha"]) * torch.exp(-ce) + kind["alpha"] for ce in ces]))
    if kind["name"] == "exponential":
        return torch.exp(-torch.arange(len(ces), dtype=F64) / kind["gamma"])
    return torch.ones(len(ces), dtype=F64)
