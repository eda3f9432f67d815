"""Greedy speculation replayed outside vLLM: the verifier in transformers, the draft as it is trained.

The answers are those that vLLM served, so that the same drafts start at the same places; what remains between
the two counts is rounding. A larger difference says that vLLM runs the draft otherwise than it was trained:
other layer ids, another norm, another chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specc.core.algorithms import algorithm
from specc.evaluate.lossless import Difference
from specc.evaluate.prompts import Asked
from specc.evaluate.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from specc.train.models import DraftModel, WalkCounts

Logits = tuple[float, float]


def replay(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    found: Sequence[Difference],
    *,
    reference: Reference,
    model: DraftModel,
    draft: Mapping[str, Any],
    steps: int,
    done: Callable[[], None],
) -> tuple[WalkCounts, dict[int, Logits | None]]:
    """Return what vLLM should have counted, and the logits of each difference's two tokens by prompt.

    `rows` are prompts and served answers as token ids. vLLM counts a draft's tokens past an answer's end too,
    since it cuts the answer only after the verification: the reference goes on by `steps` tokens for that.
    `model` is the checkpoint's draft, in the dtype in which vLLM ran it.
    """
    import torch

    from specc.train.models import WalkCounts, accepted_lengths, greedy_walk

    layers = algorithm(draft["algorithm"]).layers(draft)
    counts = WalkCounts.none(steps)
    parted = {difference.prompt: difference for difference in found}
    logits: dict[int, Logits | None] = {}
    for index, (prompt, answer) in enumerate(rows):
        first, row = len(prompt), [*prompt, *answer]
        difference = parted.get(index)
        places = [first + difference.position - 1] if difference else []
        images = prompt.images if isinstance(prompt, Asked) else ()
        reading, rows_logits = reference.read(row, layers=layers, ahead=steps, places=places, images=images)
        if difference:
            logits[index] = pair(rows_logits[0], difference)
        with torch.inference_mode():
            accepted = accepted_lengths(model.guesses(reading, steps), reading.ids)
        counts += greedy_walk(accepted.tolist(), first, len(row) - 1, steps)
        done()
    return counts, logits


def pair(logits: Tensor, difference: Difference) -> Logits | None:
    """Return the logits of a difference's two tokens out of `[vocabulary]`, None if an answer was over."""
    plain, speculative = difference.tokens
    if plain is None or speculative is None:
        return None
    return float(logits[plain]), float(logits[speculative])


def load_draft(
    checkpoint: Path, verifier: Path, draft: Mapping[str, Any], config: Mapping[str, Any], dtype: str
) -> DraftModel:
    """Return a checkpoint's draft with what it shares with its verifier, in `dtype`: vLLM runs it in the verifier's.

    `draft` and `config` are `draft` and `verifier.config` of the resolved spec.
    """
    import torch
    from safetensors.torch import load_file

    from specc.train.models import load, read_verifier

    tensors = load_file(checkpoint / "model.safetensors")
    frozen = read_verifier(verifier, config, tensors.get("d2t"), getattr(torch, dtype))
    return load(tensors, draft, config, frozen)
