"""Serve verifiers with an MTP head in vLLM and replay them, all in fp32 in one process; prints JSON.

Run as `python serve_mtp.py JOB.json` with a list of `{"verifier", "stitched", "checkpoint", "draft", "config"}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from serve_variants import MAX_TOKENS, PROMPTS, STEPS


def main(job: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from specc.core.algorithms import algorithm
    from specc.evaluate.engine import Speculator, answer
    from specc.evaluate.reference import Reference
    from specc.evaluate.replay import load_draft, replay

    found = []
    for one in job:
        options: dict[str, Any] = {
            "config": one["config"], "dtype": "float32", "length": 64, "device": "cpu", "done": lambda: None,
        }  # fmt: skip
        verifier, stitched = Path(one["verifier"]), Path(one["stitched"])
        plain = answer(verifier, PROMPTS, MAX_TOKENS, **options)
        speculator = Speculator(folder=stitched, serving=algorithm("mtp").serving, tokens=STEPS)
        served = answer(stitched, PROMPTS, MAX_TOKENS, speculator=speculator, **options)
        reference = Reference(stitched, dtype="float32", device="cpu")
        rows = list(zip(PROMPTS, served.answers, strict=True))
        walks = []
        for flipped in (False, True):
            model: Any = load_draft(Path(one["checkpoint"]), verifier, one["draft"], one["config"], "float32")
            model.reads_normed ^= flipped
            walk, _ = replay(
                rows, [], reference=reference, model=model, draft=one["draft"], steps=STEPS, done=lambda: None
            )
            walks.append([walk.drafts, walk.accepted, list(walk.accepted_per_position)])
        found.append(
            {
                "identical": served.answers == plain.answers,
                "served": [served.counts.drafts, served.counts.accepted, list(served.counts.per_position)],
                "replayed": walks[0],
                "flipped": walks[1],
            }
        )
    return found


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    out.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
    out.close()
