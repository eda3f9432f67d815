"""Train a small draft under DeepSpeed and under torch.optim alone, and print how far apart they end.

A program of its own: DeepSpeed keeps one process group a process. `python -m train.twin FOLDER` prints
`{"<stage> <precision> <optimizer> <offload>": {"apart", "moved", "clipped", "norm_apart"}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from specc.core.algorithms import directed
from specc.train.determinism import set_determinism
from specc.train.engine import Engine
from specc.train.models import DraftModel, build, trained
from specc.train.order import epoch_windows
from specc.train.verifier import read_verifier
from specc.train.whole import gradient
from train.world import DRAFT, MUON, TRAIN, VERIFIER, World, corpus, stream

CASES = [
    f"{stage} {precision} {optimizer} {offload}"
    for precision in ("fp32", "bf16")
    for stage in range(precision == "bf16", 4)
    for optimizer in ("adamw", "muon")
    for offload in ("none", "optimizer", "parameters")
    if offload == "none" or (offload == "optimizer" and stage) or stage == 3
]
"""Every combination that the language allows."""
CLIP, RATES, DECAY = 0.5, (1e-3, 3e-3, 2e-3, 1e-3), 0.1


def reference(model: DraftModel, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Return torch's own optimizers for the parameters, as the language describes them."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    adamw = {"betas": tuple(options["betas"]), "eps": options["eps"]}
    if options["name"] == "adamw":
        return [torch.optim.AdamW(matrices, weight_decay=DECAY, **adamw),
                torch.optim.AdamW(norms, weight_decay=0, **adamw)]  # fmt: skip
    return [torch.optim.Muon(matrices, weight_decay=DECAY, momentum=options["momentum"],
                             adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(norms, weight_decay=0, **adamw)]  # fmt: skip


def compare(world: World, case: str) -> dict[str, Any]:
    number, precision, optimizer, offload = case.split()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    d2t = load_file(world.folder / "vocabulary/vocabulary.safetensors")["d2t"]
    frozen = read_verifier(world.folder / "verifier", VERIFIER, d2t, dtype)
    data = corpus(world)
    batches = epoch_windows(data.training, 128, 32, seed=0, epoch=1, shuffle=True)[0].batches
    first = {
        spec.name: torch.randn(spec.shape, generator=stream(i)).mul(0.05).bfloat16().float() + (len(spec.shape) == 1)
        for i, spec in enumerate(trained(DRAFT, VERIFIER))
    }

    def model() -> DraftModel:
        return build(DRAFT, VERIFIER, first, frozen, d2t)

    options = (MUON if optimizer == "muon" else TRAIN["optimizer"]) | {"weight_decay": DECAY}
    zero = {"stage": int(number), "offload": offload}
    train = TRAIN | {"zero": zero, "precision": precision, "gradient_clipping": CLIP, "optimizer": options}
    engine = Engine(model(), train, directed(trained(DRAFT, VERIFIER)), watched=True)
    twin, masters = model(), model().float()
    optimizers = reference(masters, options)
    clipped, seen, norm_apart = 0, dict[str, Tensor](), 0.0
    backward = engine.engine.backward

    def noted(loss: Tensor) -> None:
        backward(loss)
        seen.update({name: gradient(one).clone() for name, one in engine.names.items()})

    engine.engine.backward = noted
    for rate, places in zip(RATES, batches, strict=False):
        batch = data.batch([data.training[place] for place in places], twin, frozen.normed, stream(0))
        engine.step(rate, batch, train["loss"])
        whole = float(torch.linalg.vector_norm(torch.stack([one.norm() for one in seen.values()])))
        norm_apart = max(norm_apart, abs((engine.gradient_norm or 0) / whole - 1))
        twin(batch, train["loss"]).backward()
        for (name, low), master in zip(twin.named_parameters(), masters.parameters(), strict=True):
            near = float((low.grad - seen[name]).norm() / low.grad.norm())
            assert near < (2e-2 if precision == "bf16" else 1e-4), f"the gradient of {name} is off by {near}"
            # A direction, and a first step of AdamW, magnify a gradient's last bits: given one gradient, updates agree.
            master.grad, low.grad = seen[name].float(), None
        clipped += int(torch.nn.utils.clip_grad_norm_(masters.parameters(), CLIP) > CLIP)
        for one in optimizers:
            for group in one.param_groups:
                group["lr"] = rate
            one.step()
        with torch.no_grad():
            for low, master in zip(twin.parameters(), masters.parameters(), strict=True):
                low.copy_(master)
    found, expected = engine.weights(), dict(masters.named_parameters())
    apart = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    moved = max(float((found[name] - first[name]).abs().max()) for name in expected)
    return {"apart": apart, "moved": moved, "clipped": clipped, "norm_apart": norm_apart}


if __name__ == "__main__":
    set_determinism(1)
    made = World(Path(sys.argv[1]))
    print(json.dumps({case: compare(made, case) for case in CASES}))
