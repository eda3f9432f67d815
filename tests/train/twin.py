"""Train a small draft under DeepSpeed and under torch.optim alone, and print how far apart they end.

A program of its own: DeepSpeed keeps one process group a process. `python -m train.twin FOLDER` prints
`{"<stage> <precision>": {"apart", "moved", "clipped"}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from specc.train.data import Corpus, epoch_batches
from specc.train.determinism import set_determinism
from specc.train.engine import Engine
from specc.train.models import Eagle3, build, trained
from specc.train.optim import make_optimizer
from specc.train.verifier import read_verifier
from train.world import DRAFT, LAYERS, TRAIN, VERIFIER, World, stream

CASES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
CLIP, RATES = 0.5, (1e-3, 3e-3, 2e-3, 1e-3)


def compare(world: World, stage: int, precision: str) -> dict[str, Any]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    d2t = load_file(world.folder / "vocabulary/vocabulary.safetensors")["d2t"]
    frozen = read_verifier(world.folder / "verifier", VERIFIER, d2t, dtype)
    corpus = Corpus(world.folder / "tokens", world.folder / "hidden_states", DRAFT["hidden_state_layers"], LAYERS)
    batches = epoch_batches(corpus.training, 128, seed=0, epoch=1, shuffle=True)
    first = {
        spec.name: torch.randn(spec.shape, generator=stream(i)).mul(0.05).bfloat16().float() + (len(spec.shape) == 1)
        for i, spec in enumerate(trained(DRAFT, VERIFIER))
    }

    def model() -> Eagle3:
        return build(DRAFT, VERIFIER, first, embed_tokens=frozen.embed_tokens, head=frozen.head, d2t=d2t)

    options = TRAIN["optimizer"] | {"weight_decay": 0.1}
    train = TRAIN | {"zero": {"stage": stage}, "precision": precision, "gradient_clipping": CLIP, "optimizer": options}
    engine, twin, masters = Engine(model(), train), model(), model().float()
    optimizer = make_optimizer(masters, options)
    clipped = 0
    for rate, documents in zip(RATES, batches, strict=False):
        batch = corpus.batch(documents, 3, frozen)
        engine.step(rate, batch.rows, batch.targets, train["loss"])
        twin(batch.rows, batch.targets, train["loss"]).backward()
        for low, master in zip(twin.parameters(), masters.parameters(), strict=True):
            master.grad, low.grad = low.grad.float(), None
        clipped += int(torch.nn.utils.clip_grad_norm_(masters.parameters(), CLIP) > CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            for low, master in zip(twin.parameters(), masters.parameters(), strict=True):
                low.copy_(master)
    found, expected = engine.weights(), dict(masters.named_parameters())
    apart = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    moved = max(float((found[name] - first[name]).abs().max()) for name in expected)
    return {"apart": apart, "moved": moved, "clipped": clipped}


if __name__ == "__main__":
    set_determinism(1)
    made = World(Path(sys.argv[1]))
    print(json.dumps({f"{stage} {precision}": compare(made, stage, precision) for stage, precision in CASES}))
