"""Greedy speculation replayed outside vLLM: the verifier in transformers, the draft as it is trained.

The answers are those that vLLM served, so that the same drafts start at the same places; what remains between
the two counts is rounding. A larger difference says that vLLM runs the draft otherwise than it was trained:
other layer ids, another norm, another chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specc.evaluate.lossless import Difference
from specc.evaluate.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

    from specc.train.models import WalkCounts

Logits = tuple[float, float]


def replay(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    found: Sequence[Difference],
    *,
    reference: Reference,
    tensors: Mapping[str, Tensor],
    draft: Mapping[str, Any],
    verifier: Mapping[str, Any],
    steps: int,
    done: Callable[[], None],
) -> tuple[WalkCounts, dict[int, Logits | None]]:
    """Return what vLLM should have counted, and the logits of each difference's two tokens by prompt.

    `rows` are prompts and served answers as token ids. vLLM counts a draft's tokens past an answer's end too,
    since it cuts the answer only after the verification: the reference goes on by `steps` tokens for that.
    `tensors` are the checkpoint's, in the dtype in which vLLM ran them.
    """
    from specc.train.models import WalkCounts, accepted_lengths, greedy_walk, load

    model = load(tensors, draft, verifier)
    counts = WalkCounts.none(steps)
    parted = {difference.prompt: difference for difference in found}
    logits: dict[int, Logits | None] = {}
    for index, (prompt, answer) in enumerate(rows):
        first, row = len(prompt), [*prompt, *answer]
        difference = parted.get(index)
        places = [first + difference.position - 1] if difference else []
        reading = reference.read(row, layers=draft["hidden_state_layers"], ahead=steps, places=places)
        if difference:
            logits[index] = pair(reading.logits[0], difference)
        accepted = accepted_lengths(model, reading.tokens, reading.hidden_states, steps)
        counts += greedy_walk(accepted.tolist(), first, len(row) - 1, steps)
        done()
    return counts, logits


def pair(logits: Tensor, difference: Difference) -> Logits | None:
    """Return the logits of a difference's two tokens out of `[vocabulary]`, None if an answer was over."""
    plain, speculative = difference.tokens
    if plain is None or speculative is None:
        return None
    return float(logits[plain]), float(logits[speculative])


def checkpoint_tensors(folder: Path, dtype: str) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, the floating ones in `dtype`: vLLM runs a draft in its verifier's."""
    import torch
    from safetensors.torch import load_file

    target: torch.dtype = getattr(torch, dtype)
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.to(target) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
