"""`make bench-scale`: what grows with the data and what must not, in one run.

    memory_<stage>   peak memory of a stage over that of the same stage with ten times the rows
    plan             `specc plan` of a million rows, against a limit of LIMIT seconds: limit over what it took

Data generation is bounded by a shard, training by a batch. The verifier is a small random one; the stages and their
engines are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from machine import SPECC, build, keep

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from small import TEXT, make_verifier

ROWS = 1_200
MILLION = 1_000_000
LIMIT = 5.0
SPEC = """\
version: 1
name: scale
verifier: {model: ./tiny}
draft: {algorithm: eagle3, vocabulary: 128, hidden_state_layers: [1, 3, 4]}
data:
  sources: [{file: rows.jsonl}]
  responses: {from: data}
  sequence_length: 256
train: {epochs: 1, batch_tokens: 2048}
runtime: {threads: 2}
"""


def write_rows(path: Path, count: int) -> None:
    """Write so many different conversations of some fifty words."""
    random, words = Random(1), TEXT.split()  # noqa: S311 - it must repeat
    with path.open("w") as file:
        for number in range(count):
            question, answer = (" ".join(random.choices(words, k=size)) for size in (12, 40))
            messages = [{"role": "user", "content": f"{number}: {question}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")


def project(folder: Path, rows: int) -> Path:
    """Write a spec with its verifier and so many rows."""
    folder.mkdir()
    make_verifier(folder / "tiny")
    write_rows(folder / "rows.jsonl", rows)
    (folder / "scale.yaml").write_text(SPEC)
    return folder


def main() -> int:
    """Build with so many rows and with ten times as many, and plan with a million."""
    with TemporaryDirectory() as name:
        one, ten = (build(project(Path(name) / str(rows), rows), "scale.yaml", "draft") for rows in (ROWS, 10 * ROWS))
        many = project(Path(name) / "million", MILLION)
        plans: list[float] = []
        for _ in range(2):  # the first one hashes the rows, the second one finds the hash
            started = time.monotonic()
            subprocess.run([SPECC, "plan", str(many / "scale.yaml")], check=True, stdout=subprocess.DEVNULL)
            plans.append(round(time.monotonic() - started, 2))
    ratios = {f"memory_{stage}": round(one[stage]["peak_rss"] / ten[stage]["peak_rss"], 3) for stage in one}
    details = {
        "rows": [ROWS, 10 * ROWS],
        "peak_rss": {stage: [one[stage]["peak_rss"], ten[stage]["peak_rss"]] for stage in one},
        "seconds": {stage: [one[stage]["seconds"], ten[stage]["seconds"]] for stage in one},
        "plan_of_a_million_rows_seconds": plans,
    }
    limits = dict.fromkeys(ratios, 0.9) | {"plan": 1.0}
    return keep("scale", {**ratios, "plan": round(LIMIT / max(plans), 3)}, limits, details)


if __name__ == "__main__":
    raise SystemExit(main())
