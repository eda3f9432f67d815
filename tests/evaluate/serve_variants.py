"""Serve variants of a random draft in vLLM and replay them, all in fp32 in one process; prints JSON.

Run as `python serve_variants.py JOB.json` with `{"verifier", "config", "variants": [{"folder", "draft"}]}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STEPS, MAX_TOKENS = 3, 24
PROMPTS = [[(11 * row + 5 * place) % 300 + 3 for place in range(6 + row)] + [40 + row % 3] * 3 for row in range(12)]


def main(job: dict[str, object]) -> list[dict[str, object]]:
    from specc.core.algorithms import algorithm
    from specc.evaluate.engine import Speculator, answer
    from specc.evaluate.reference import Reference
    from specc.evaluate.replay import load_draft, replay

    verifier = Path(str(job["verifier"]))
    options = {"dtype": "float32", "length": 64, "device": "cpu", "done": lambda: None}
    plain = answer(verifier, PROMPTS, MAX_TOKENS, **options)
    reference = Reference(verifier, dtype="float32", device="cpu")
    found = []
    for variant in job["variants"]:
        folder, draft = Path(variant["folder"]), variant["draft"]
        speculator = Speculator(folder=folder, serving=algorithm(draft["algorithm"]).serving, tokens=STEPS)
        served = answer(verifier, PROMPTS, MAX_TOKENS, speculator=speculator, **options)
        rows = list(zip(PROMPTS, served.answers, strict=True))
        walked, _ = replay(
            rows, [], reference=reference, model=load_draft(folder, verifier, draft, job["config"], "float32"),
            draft=draft, steps=STEPS, done=lambda: None,
        )  # fmt: skip
        found.append(
            {
                "identical": served.answers == plain.answers,
                "served": [served.counts.drafts, served.counts.accepted, list(served.counts.per_position)],
                "replayed": [walked.drafts, walked.accepted, list(walked.accepted_per_position)],
            }
        )
    return found


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    out.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
    out.close()
