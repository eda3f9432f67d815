"""A frozen twin: EAGLE-3's training step as its paper says it, in plain torch, by itself.

It computes what `specc.train.models.eagle3` computes, and nothing is left out that one could leave out: logits of the
draft and of the verifier at all positions, all rows at every step of training-time test, attention over all keys of all
steps under a dense mask. It is a yardstick, so it is not made faster: only a fault in it is a reason for a change.

`python twin.py FOLDER DTYPE STEPS` trains so many steps on what `train.py` left in FOLDER and prints a line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

WARM = 2
"""Steps that are not timed."""


class Twin:
    """A draft of one layer; `weights` by the checkpoint's names, in the dtype of the computation."""

    def __init__(self, weights: Mapping[str, Tensor], ends: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.w, self.ends, self.config = weights, ends, config
        size = config["head_dim"]
        self.inverse = config["rope_parameters"]["rope_theta"] ** -(torch.arange(0, size, 2) / size)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x / rms(x) * weight."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.config["rms_norm_eps"]).to(x.dtype) * weight

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Apply rotary embeddings to `x` [rows, heads, size]."""
        angles = (positions[:, None] * self.inverse).repeat(1, 2)[:, None]
        left, right = x.chunk(2, -1)
        return x * angles.cos().to(x.dtype) + torch.cat((-right, left), -1) * angles.sin().to(x.dtype)

    def loss(self, batch: Mapping[str, Tensor], steps: int) -> Tensor:
        """Return the sum over steps of the mean KL(verifier || draft) over the positions that the step counts."""
        w, rows = self.w, len(batch["tokens"])
        with torch.no_grad():
            normed = self.norm(batch["last"], self.ends["norm"])
            p = torch.log_softmax((normed @ self.ends["head"].t()).float(), -1)  # [rows, vocabulary]
        here = torch.arange(rows)
        document = batch["document"]
        causal = (document[:, None] == document) & (here[:, None] >= here)
        own = torch.eye(rows, dtype=torch.bool)
        hidden = F.linear(self.norm(batch["aux"], w["input_norm.weight"]), w["fc.weight"])
        keys: list[Tensor] = []
        values: list[Tensor] = []
        total = hidden.new_zeros((), dtype=torch.float32)
        for k in range(steps):
            tokens, target = batch["tokens"].roll(-k), p.roll(-k, 0)
            normed = self.norm(hidden, w["layers.0.hidden_norm.weight"])
            embeds = F.embedding(tokens, self.ends["embed"])
            x = torch.cat((self.norm(embeds, w["layers.0.input_layernorm.weight"]), normed), -1)
            size = self.config["head_dim"]
            q, key, value = (
                F.linear(x, w[f"layers.0.self_attn.{one}_proj.weight"]).unflatten(-1, (-1, size)) for one in "qkv"
            )
            keys.append(self.turn(key, batch["positions"] + k))
            values.append(value)
            mask = torch.cat([causal, *[own] * k], 1)
            out = F.scaled_dot_product_attention(
                self.turn(q, batch["positions"] + k).transpose(0, 1)[None], torch.cat(keys).transpose(0, 1)[None],
                torch.cat(values).transpose(0, 1)[None], attn_mask=mask, enable_gqa=True,
            )  # [1, heads, rows, size]  # fmt: skip
            hidden = normed + F.linear(out[0].transpose(0, 1).flatten(1), w["layers.0.self_attn.o_proj.weight"])
            y = self.norm(hidden, w["layers.0.post_attention_layernorm.weight"])
            gate, up = (F.linear(y, w[f"layers.0.mlp.{one}_proj.weight"]) for one in ("gate", "up"))
            hidden = hidden + F.linear(F.silu(gate) * up, w["layers.0.mlp.down_proj.weight"])
            hidden = self.norm(hidden, w["norm.weight"])
            q_log = torch.log_softmax((hidden @ self.ends["head"].t()).float(), -1)
            divergence = (target.exp() * (target - q_log)).sum(-1)
            counted = batch["depth"].roll(-k) >= k
            total = total + (divergence * counted).sum() / counted.sum()
        return total


def train(folder: Path, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """Train on the batches in `folder`, fp32 masters beside bf16 weights; return rates, FLOPs, memory and losses."""
    about: dict[str, Any] = json.loads((folder / "about.json").read_text())
    ends = {name: tensor.to(dtype) for name, tensor in load_file(folder / "ends.safetensors").items()}
    masters = {
        name: tensor.clone().requires_grad_() for name, tensor in load_file(folder / "start.safetensors").items()
    }
    weights = masters
    if dtype != torch.float32:
        weights = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in masters.items()}
    optimizer = torch.optim.AdamW(masters.values(), lr=about["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0,
                                  fused=True)  # fmt: skip
    twin = Twin(weights, ends, about["config"])
    losses: list[float] = []
    rows, seconds, flops = 0, 0.0, 0
    for number, batch in enumerate(_batches(folder, dtype, steps)):
        started = time.perf_counter()
        if number == WARM - 1:
            # The counter does not know the CPU's own attention; the plain one multiplies the same matrices.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                loss = _step(twin, masters, optimizer, batch, about["steps"])
            flops = counter.get_total_flops() // len(batch["tokens"])
        else:
            loss = _step(twin, masters, optimizer, batch, about["steps"])
        losses.append(loss)
        if number >= WARM:
            seconds += time.perf_counter() - started
            rows += len(batch["tokens"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens_per_second": rows / seconds, "flops": flops,
            "peak_rss": peak, "losses": losses}  # fmt: skip


def _step(
    twin: Twin, masters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], steps: int
) -> float:  # fmt: skip
    weights, loss = twin.w, twin.loss(batch, steps)
    loss.backward()
    if weights is not masters:
        for name, master in masters.items():
            master.grad = weights[name].grad.float()  # pyright: ignore[reportOptionalMemberAccess]
            weights[name].grad = None
    torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if weights is not masters:
        with torch.no_grad():
            for name, master in masters.items():
                weights[name].copy_(master)
    return float(loss.detach())


def _batches(folder: Path, dtype: torch.dtype, steps: int) -> Any:
    for path in sorted(folder.glob("batch-*.safetensors"))[:steps]:
        batch = load_file(path)
        yield {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def main(arguments: Sequence[str]) -> None:
    folder, dtype, steps = Path(arguments[0]), getattr(torch, arguments[1]), int(arguments[2])
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    print(json.dumps(train(folder, dtype, steps)))


if __name__ == "__main__":
    main(sys.argv[1:])
