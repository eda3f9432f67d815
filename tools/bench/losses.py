"""`make bench-losses`: the chunked losses against plain torch over whole logits, in one run.

    speed_over_twin   processor's seconds of the twin, forward and backward, over those of `draft_losses`
    memory_of_twin    peak memory of the twin, without what it is given, over that of `draft_losses`
    memory_at_262144  peak memory of `draft_losses` over that with a vocabulary of 262,144

The loss is kl in fp32, over 1,024 targets and three steps with a vocabulary of 151,936. States of 256 keep the run
short: wider ones add the same matrix products to both sides. Each measurement is a process of its own with two threads,
and each side has two, by turns; the best count. Both must come to the same loss and gradient.
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

STEPS, TARGETS, HIDDEN = 3, 1024, 256
VOCABULARY, LARGE = 151_936, 262_144
ROUNDS = 2
LIMITS = {"speed_over_twin": 1.0, "memory_of_twin": 5.0, "memory_at_262144": 0.8}


def main() -> int:
    """Measure each side by turns, and ours once more with a larger vocabulary; keep the best times."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        sides: dict[str, list[dict[str, Any]]] = {"ours": [], "twin": []}
        for _ in range(ROUNDS):
            for side, rounds in sides.items():
                rounds.append(run(folder, __file__, side, str(VOCABULARY), str(TARGETS)))
        large = run(folder, __file__, "ours", str(LARGE), "128")
    for what in ("loss", "norm"):
        ours, twin = (rounds[0][what] for rounds in sides.values())
        assert abs(ours - twin) <= 1e-3 * abs(twin), f"the sides come to another {what}: {ours} and {twin}"
    processor, peak = (
        {side: min(one[what] for one in rounds) for side, rounds in sides.items()} for what in ("processor", "peak")
    )
    ratios = {
        "speed_over_twin": round(processor["twin"] / processor["ours"], 3),
        "memory_of_twin": round(peak["twin"] / peak["ours"], 3),
        "memory_at_262144": round(peak["ours"] / large["peak"], 3),
    }
    details: dict[str, Any] = {
        what: {side: [round(one[what], 2) for one in rounds] for side, rounds in sides.items()}
        for what in ("seconds", "processor", "peak")
    }
    details["peak_at_262144"] = large["peak"]
    return keep("losses", ratios, LIMITS, details)


def measure(side: str, vocabulary: int, targets: int) -> dict[str, float]:
    """Return what a forward and backward pass takes, in seconds and at its peak in bytes, and what it comes to."""
    import torch
    from torch import Tensor

    from specc.train.losses import Head, draft_losses

    def twin(states: Tensor, normed: Tensor, head: Tensor) -> Tensor:
        log_p = (normed @ head.t()).log_softmax(-1)  # [targets, vocabulary]
        log_q = (states @ head.t()).log_softmax(-1)  # [steps, targets, vocabulary]
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def ours(states: Tensor, normed: Tensor, head: Tensor) -> Tensor:
        return draft_losses(states, normed, Head(head), {"kl": 1.0}).losses

    def once(vocabulary: int, targets: int) -> dict[str, float]:
        draw = torch.Generator().manual_seed(1)
        shapes = ((STEPS, targets, HIDDEN), (targets, HIDDEN), (vocabulary, HIDDEN))
        states, normed, head = (torch.randn(shape, generator=draw) for shape in shapes)
        head.mul_(2 * HIDDEN**-0.5)
        states.requires_grad_()
        before, started, worked = resident(), time.perf_counter(), time.process_time()
        loss = (twin if side == "twin" else ours)(states, normed, head).mean()
        loss.backward()
        seconds, processor = time.perf_counter() - started, time.process_time() - worked
        peak = resident() - before
        assert states.grad is not None
        return {"seconds": seconds, "processor": processor, "peak": peak,
                "loss": float(loss.detach()), "norm": float(states.grad.norm())}  # fmt: skip

    once(1000, 128)  # loads the libraries
    return once(vocabulary, targets)


def resident() -> int:
    """Return the process's largest memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    if len(sys.argv) == 1:
        raise SystemExit(main())
    _, _, which, *sizes = sys.argv
    print(json.dumps(measure(which, *map(int, sizes))))
