"""`make bench-peagle`: a training step of P-EAGLE with eight depths against one with one depth, in one run.

    memory_of_one_depth   peak memory of a step with one depth, over that with eight: at least a half
    speed_of_one_depth    seconds of a step with one depth, over those with eight

A step is a forward and a backward pass over 2,048 rows of four documents, seven eighths of which the assistant wrote,
of a draft for SmolLM2-135M in fp32 with 8,192 tokens and the default sampling. What is there before the step, weights
and batch, is not counted. Each measurement is a process of its own with two threads, and each side has two, by turns;
the best count.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import keep, run

DOCUMENTS, TOKENS, PROMPT = 4, 514, 64
STEPS = 3
VOCABULARY = 49152
ROUNDS = 2
LIMITS = {"memory_of_one_depth": 0.5}
VERIFIER: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "bos_token_id": 1, "eos_token_ids": [2],
}  # fmt: skip


def main() -> int:
    """Measure each side by turns; keep the best."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        sides: dict[str, list[dict[str, float]]] = {"1": [], "8": []}
        for _ in range(ROUNDS):
            for side, rounds in sides.items():
                rounds.append(run(folder, __file__, side))
    peak, seconds = (
        {side: min(one[what] for one in rounds) for side, rounds in sides.items()} for what in ("peak", "seconds")
    )
    ratios = {
        "memory_of_one_depth": round(peak["1"] / peak["8"], 3),
        "speed_of_one_depth": round(seconds["1"] / seconds["8"], 3),
    }
    details = {what: {side: [one[what] for one in rounds] for side, rounds in sides.items()}
               for what in ("peak", "seconds", "masks", "targets")}  # fmt: skip
    return keep("peagle", ratios, LIMITS, details)


def measure(depths: int) -> dict[str, float]:
    """Return a step's peak memory in bytes, the seconds of the fastest one, its mask rows and its targets."""
    import torch

    from specc.core.algorithms import algorithm
    from specc.train.losses import Head
    from specc.train.models import Batch, Frozen, Reading, build, initial, trained

    draft = algorithm("peagle").section.model_validate({"algorithm": "peagle", "depths": depths}).model_dump()
    draft |= {"vocabulary": 8192, "hidden_state_layers": [2, 15, 27], "intermediate_size": 1536, "mask_token": 2}
    draw = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    embed = random(VOCABULARY, 576)
    frozen = Frozen(embed, torch.ones(576), 1e-5, Head(embed[:8192] * 576**-0.5), embed)
    weights = {spec.name: initial(draft, VERIFIER, spec, draw) for spec in trained(draft, VERIFIER)}
    model: Any = build(draft, VERIFIER, weights, frozen, torch.zeros(8192, dtype=torch.int64))

    def batch(documents: int, tokens: int) -> Any:
        masks = [torch.arange(tokens) >= PROMPT] * documents
        readings = [
            Reading(torch.randint(VOCABULARY, (tokens,), generator=draw), random(tokens, 3, 576), random(tokens, 576))
            for _ in masks
        ]
        return model.pack(readings, model.choose(masks, draw), frozen.normed)

    def step(content: Any) -> float:
        started = time.perf_counter()
        model(Batch(content), {"kl": 1.0}).backward()
        return time.perf_counter() - started

    content = batch(DOCUMENTS, TOKENS)
    step(batch(1, PROMPT + 66))  # loads the libraries, and makes the gradients
    before = resident()
    first = step(content)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "peak": peak,
        "seconds": round(min(first, *(step(content) for _ in range(STEPS))), 4),
        "masks": len(content.masks.depths),
        "targets": int(content.targets.counted.sum()),
    }


def resident() -> int:
    """Return the process's memory now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        raise SystemExit(main())
    print(json.dumps(measure(int(sys.argv[2]))))
