"""Serve converted drafts in vLLM, all in fp32 in one process, and count what their sources would have accepted.

Run as `python serve_converted.py JOB.json`; prints JSON. What is served is the converted folder, and what it is held to
is the source's own forward pass of `reference`, over the states of the verifier in transformers.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, MAX_TOKENS = 3, 12
PROMPTS = [[(11 * row + 5 * place) % 300 + 3 for place in range(5 + row)] + [40 + row % 3] * 3 for row in range(5)]


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    from specc.evaluate.engine import Speculator, answer
    from specc.evaluate.evaluation import room
    from specc.evaluate.reference import Reference

    verifier = Path(job["verifier"])
    length = max(map(len, PROMPTS)) + room(MAX_TOKENS, STEPS)
    options = {"config": job["config"], "dtype": "float32", "length": length, "device": "cpu", "done": lambda: None}
    reference = Reference(verifier, dtype="float32", device="cpu")
    plain, found = None, []
    for one in job["drafts"]:
        speculator = Speculator(folder=Path(one["folder"]), serving=one["serving"], tokens=STEPS)
        served = answer(verifier, PROMPTS, MAX_TOKENS, speculator=speculator, **options)
        plain = plain or served.answers
        original, runs = Original.read(one, verifier), list[int]()
        for prompt, ids in zip(PROMPTS, served.answers, strict=True):
            runs += walk(original, reference, one["layers"], prompt, list(ids))
        found.append({
            "identical": served.answers == plain,
            "served": [served.counts.drafts, served.counts.accepted, list(served.counts.per_position)],
            "reference": [len(runs), sum(runs), [sum(run > place for run in runs) for place in range(STEPS)]],
        })  # fmt: skip
    return found


def walk(original: Original, reference: Any, layers: list[int], prompt: list[int], ids: list[int]) -> list[int]:
    """Return how many tokens of each draft of an answer the source's own forward pass would have right.

    vLLM counts a draft's tokens past an answer's end too, so that the row goes on by what the verifier would say.
    """
    import torch

    row = [*prompt, *ids]
    reading, _ = reference.read(row, layers=layers, ahead=STEPS, places=[])
    runs, newest = [], len(prompt)
    while newest < len(row) - 1:
        start, drafted = reading.ids[: newest + 1], []
        states = reading.aux[: newest + 1], reading.last[: newest + 1]
        with torch.inference_mode():
            while len(drafted) < STEPS:
                drafted.append(original.propose(start, *states, drafted))
        right = [token == int(reading.ids[newest + 1 + place]) for place, token in enumerate(drafted)
                 if newest + 1 + place < len(reading.ids)]  # fmt: skip
        run = next((place for place, good in enumerate(right) if not good), len(right))
        runs.append(run)
        newest += run + 1
    return runs


@dataclass(frozen=True, slots=True)
class Original:
    """A source, with the ends of its verifier."""

    layout: str
    config: dict[str, Any]
    weights: dict[str, Any]
    ends: dict[str, Any]
    epsilon: float

    @classmethod
    def read(cls, one: dict[str, Any], verifier: Path) -> Original:
        from safetensors.torch import load_file

        folder = Path(one["source"])
        config = json.loads((folder / "config.json").read_text())
        weights, ends = (load_file(where / "model.safetensors") for where in (folder, verifier))
        return cls(one["layout"], config, weights, ends, one["epsilon"])

    def propose(self, ids: Any, aux: Any, last: Any, drafted: list[int]) -> int:
        """Return the token that the source proposes after `drafted`, by the verifier's ids."""
        from export.convert import reference

        embedding = head = self.ends["model.embed_tokens.weight"]  # the verifier's are tied
        own, both = self.weights.get("embed_tokens.weight", embedding), (self.config, self.weights)
        match self.layout:
            case "eagle3":
                logits = reference.eagle3(*both, own, ids, aux, drafted)
            case "peagle":
                logits = reference.peagle(*both, own, ids, aux, drafted)
            case "dflash":
                logits = reference.dflash(*both, (embedding, head), ids, aux, drafted)
            case _:
                normed = reference.rms(last, self.ends["model.norm.weight"], self.epsilon)
                logits = reference.eagle(*both, own, ids, normed, drafted, head)
        best = int(logits.argmax())
        return best + int(self.weights["d2t"][best]) if "d2t" in self.weights else best


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    out.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
    out.close()
