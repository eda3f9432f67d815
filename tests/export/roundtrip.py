"""Checkpoints of random block drafts, and a training step that goes on from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import drafts
from specc.train.models import Batch, DraftModel, Reading, build, load, read_verifier


def written(verifier: Path, folder: Path, draft: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Return resolved values and the checkpoint of a random draft, in fp32."""
    values = drafts.resolved(verifier, **draft)
    values["export"]["dtype"] = values["verifier"]["dtype"] = "float32"
    return values, drafts.assemble(folder, values, verifier)


def models(values: Mapping[str, Any], checkpoint: Path, verifier: Path) -> tuple[Any, Any]:
    """Return the draft as it was trained, and as its checkpoint has it."""
    draft, config = values["draft"], values["verifier"]["config"]
    tensors = load_file(checkpoint / "model.safetensors")
    d2t = None if "d2t" not in tensors else tensors["d2t"].clone()
    frozen = read_verifier(verifier, config, d2t, torch.float32)
    before = load_file(checkpoint.parent / "draft" / "model.safetensors")
    return build(draft, config, before, frozen, d2t), load(tensors, draft, config, frozen)


def stepped(model: DraftModel, hidden: int, aux: int) -> dict[str, list[float]]:
    """Return a model's loss and its weights after one step of plain SGD."""
    random = torch.Generator().manual_seed(3)
    documents = [
        Reading(torch.randint(384, (size,), generator=random), torch.randn(size, aux, hidden, generator=random),
                torch.randn(size, hidden, generator=random))
        for size in (9, 14)
    ]  # fmt: skip
    chosen = model.choose([torch.arange(len(one)) >= 2 for one in documents], random)
    loss = model(Batch(model.pack(documents, chosen, lambda states: states)), {"kl": 1.0})
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    weights = {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}
    return {"loss": [float(loss.detach())], **weights}
