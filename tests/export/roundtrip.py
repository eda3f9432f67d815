"""Checkpoints of random block drafts, and a training step that goes on from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import drafts
from specc.core.algorithms import algorithm
from specc.train.models import Batch, DraftModel, Reading, build, load, read_verifier, trained


def written(verifier: Path, folder: Path, draft: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Return resolved values and the checkpoint of a random draft, in fp32."""
    values = drafts.resolved(verifier, **draft)
    values["export"]["dtype"] = values["verifier"]["dtype"] = "float32"
    return values, drafts.assemble(folder, values, verifier)


def models(
    values: Mapping[str, Any], checkpoint: Path, verifier: Path
) -> tuple[dict[str, Tensor], DraftModel, DraftModel]:
    """Return a draft's weights as they were trained, a model of these, and one as its checkpoint has it."""
    draft, config = values["draft"], values["verifier"]["config"]
    tensors = load_file(checkpoint / "model.safetensors")
    d2t = None if "d2t" not in tensors else tensors["d2t"].clone()
    frozen = read_verifier(verifier, config, d2t, torch.float32)
    before = load_file(checkpoint.parent / "draft" / "model.safetensors")
    return before, build(draft, config, before, frozen, d2t), load(tensors, draft, config, frozen).train()


def assert_goes_on_with_the_same_bits(values: Mapping[str, Any], checkpoint: Path, verifier: Path) -> None:
    """Assert that a step of training moves every weight, and to the same bits before the export and after it."""
    before, *both = models(values, checkpoint, verifier)
    assert sorted(before) == [spec.name for spec in trained(values["draft"], values["verifier"]["config"])]
    aux = len(algorithm(values["draft"]["algorithm"]).layers(values["draft"]))
    hidden = values["verifier"]["config"]["hidden_size"]
    (one_loss, one), (two_loss, two) = (stepped(model, hidden, aux) for model in both)
    assert torch.equal(one_loss, two_loss)
    for name, weight in before.items():
        assert torch.equal(one[name], two[name]), name
        assert not torch.equal(one[name], weight), name


def stepped(model: DraftModel, hidden: int, aux: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a model's loss and its weights after one step of plain AdamW."""
    random = torch.Generator().manual_seed(3)
    documents = [
        Reading(torch.randint(384, (size,), generator=random), torch.randn(size, aux, hidden, generator=random),
                torch.randn(size, hidden, generator=random))
        for size in (9, 14, 20)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    chosen = model.choose([torch.arange(len(one)) >= 2 for one in documents], random)
    loss = model(Batch(model.pack(documents, chosen, lambda states: states)), {"kl": 1.0, "ce": 0.5})
    loss.backward()
    optimizer.step()
    return loss.detach(), {name: one.detach() for name, one in model.named_parameters()}
