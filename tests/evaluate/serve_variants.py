"""Serve variants of a random draft in vLLM, replay and decode them, all in fp32 in one process; prints JSON.

Run as `python serve_variants.py JOB.json` with `{"verifier", "config", "variants": [{"folder", "draft"}]}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specc.evaluate.lossless import Difference
    from specc.evaluate.reference import Reference

STEPS, MAX_TOKENS = 3, 24
PROMPTS = [
    [(11 * row + 5 * place) % 300 + 3 for place in range(6 + row % 12)] + [40 + row % 3] * 3 for row in range(26)
]
"""More than a batch, so that some go on where the longest ends: its last draft must have room."""


def main(job: dict[str, object]) -> list[dict[str, object]]:
    import torch

    from specc.core.algorithms import algorithm
    from specc.evaluate.decoder import Decoder
    from specc.evaluate.engine import Speculator, answer
    from specc.evaluate.evaluation import room
    from specc.evaluate.lossless import differences
    from specc.evaluate.reference import Reference
    from specc.evaluate.replay import load_draft, replay

    verifier = Path(str(job["verifier"]))
    length = max(len(prompt) for prompt in PROMPTS) + room(MAX_TOKENS, STEPS)
    options = {"config": job["config"], "dtype": "float32", "length": length, "device": "cpu", "done": lambda: None}
    plain = answer(verifier, PROMPTS, MAX_TOKENS, **options)
    reference = Reference(verifier, dtype="float32", device="cpu")
    found = []
    for variant in job["variants"]:
        folder, draft = Path(variant["folder"]), variant["draft"]
        speculator = Speculator(folder=folder, serving=algorithm(draft["algorithm"]).serving, tokens=STEPS)
        served = answer(verifier, PROMPTS, MAX_TOKENS, speculator=speculator, **options)
        rows = list(zip(PROMPTS, served.answers, strict=True))
        model = load_draft(folder, verifier, draft, job["config"], "float32")
        decoder = Decoder(reference=reference, draft=model, layers=algorithm(draft["algorithm"]).layers(draft),
                          steps=STEPS, ends=reference.ends())  # fmt: skip
        decoded = decoder.decode_all(PROMPTS, MAX_TOKENS, torch.Generator(), lambda: None)
        parted = differences(served.answers, decoded.answers)
        walked, _ = replay(
            rows, [], reference=reference, model=model, draft=draft, steps=STEPS,
            done=lambda: None,
        )  # fmt: skip
        found.append(
            {
                "identical": served.answers == plain.answers,
                "served": [served.counts.drafts, served.counts.accepted, list(served.counts.per_position)],
                "decoded": [decoded.counts.drafts, decoded.counts.accepted, list(decoded.counts.per_position)],
                "parted": [ulps(reference, one, served.answers[one.prompt]) for one in parted],
                "replayed": [walked.drafts, walked.accepted, list(walked.accepted_per_position)],
            }
        )
    return found


def ulps(reference: Reference, one: Difference, answer: tuple[int, ...]) -> float | None:
    """How far the logits of a difference's two tokens lie apart; None if an answer was over."""
    from specc.evaluate.lossless import gap_ulp
    from specc.evaluate.replay import pair

    logits = reference.logits([*PROMPTS[one.prompt], *answer[: one.position]])
    found = pair(logits, one)
    return None if found is None else gap_ulp(found, "float32")


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    out.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
    out.close()
