"""MTP heads as they are served, one position at a time, in plain torch: the twin that training is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HEAD = "mtp_layers.0"


class PlainHead:
    """One document: keys are kept in a list, nothing is packed, masked or shared. `last` are states before the norm."""

    def __init__(self, weights: Mapping[str, Tensor], verifier: Mapping[str, Any], ends: Mapping[str, Tensor]) -> None:
        self.w, self.v = weights, verifier
        self.embed, self.head, self.final = ends["embed"], ends["head"], ends["norm"]
        self.mimo = verifier["model_type"] == "mimo"

    def rms(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean() + self.v["rms_norm_eps"]).sqrt()

    def norm(self, x: Tensor, name: str) -> Tensor:
        gain = self.w[f"{HEAD}.{name}.weight"]
        return self.rms(x) * (gain if self.mimo else 1 + gain)

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = self.w[f"{HEAD}.{name}.weight"] @ x
        bias = self.w.get(f"{HEAD}.{name}.bias")
        return out if bias is None else out + bias

    def turn(self, x: Tensor, position: int) -> Tensor:
        """Rotary embedding of the first part of a head as complex numbers; x [heads, size]."""
        half = int(x.shape[-1] * self.v.get("partial_rotary_factor", 1.0)) // 2
        base = self.v["rope_parameters"]["rope_theta"]
        angle = position * base ** -(torch.arange(half, dtype=torch.float64) / half)
        z = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag, x[..., 2 * half :]), -1)

    def swiglu(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        g = gate @ x
        return down @ (g * torch.sigmoid(g) * (up @ x))

    def dense(self, x: Tensor, name: str) -> Tensor:
        return self.swiglu(x, *(self.w[f"{HEAD}.{name}.{one}_proj.weight"] for one in ("gate", "up", "down")))

    def feed_forward(self, x: Tensor) -> Tensor:
        if not self.v.get("num_experts"):
            return self.dense(x, "mlp")
        p = self.linear(x, "mlp.gate").softmax(0)
        best = p.argsort(descending=True)[: self.v["num_experts_per_tok"]].tolist()
        total = sum(p[expert] for expert in best) if self.v["norm_topk_prob"] else 1
        out = torch.sigmoid(self.linear(x, "mlp.shared_expert_gate")) * self.dense(x, "mlp.shared_expert")
        for expert in best:
            gate, up = self.w[f"{HEAD}.mlp.experts.gate_up_proj"][expert].chunk(2)
            out = out + p[expert] / total * self.swiglu(x, gate, up, self.w[f"{HEAD}.mlp.experts.down_proj"][expert])
        return out

    def position(self, token: int, hidden: Tensor, position: int, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Run one position, append its keys to `cache`; return the final state, which the next step reads."""
        embed = self.embed[token]
        if self.mimo:
            embed = embed * (position > 0)
        token_, state = self.norm(embed, "token_layernorm"), self.norm(hidden, "hidden_layernorm")
        residual = self.linear(torch.cat((state, token_) if self.mimo else (token_, state)), "input_proj")
        x, size = self.norm(residual, "input_layernorm"), self.v["head_dim"]
        q, k, v = (self.linear(x, f"self_attn.{one}_proj") for one in ("q", "k", "v"))
        k, v, gate = k.view(-1, size), v.view(-1, size), None
        if self.mimo:
            q = q.view(-1, size)
        else:
            q, gate = q.view(-1, 2, size).unbind(1)
            q, k = (torch.stack([self.norm(one, f"self_attn.{n}_norm") for one in x]) for n, x in (("q", q), ("k", k)))
        cache.append((self.turn(k, position), v))
        q, heads = self.turn(q, position), []
        for head in range(len(q)):
            group = head // (self.v["num_attention_heads"] // self.v["num_key_value_heads"])
            scores = torch.stack([q[head] @ key[group] / size**0.5 for key, _ in cache]).softmax(0)
            out = sum(p * value[group] for p, (_, value) in zip(scores, cache, strict=True))
            heads.append(out if gate is None else out * torch.sigmoid(gate[head]))
        residual = residual + self.linear(torch.cat(heads), "self_attn.o_proj")
        residual = residual + self.feed_forward(self.norm(residual, "post_attention_layernorm"))
        return self.norm(residual, "final_layernorm")

    def read(self, last: Tensor) -> Tensor:
        return last if self.mimo else self.rms(last) * self.final

    def first(self, tokens: list[int], last: Tensor) -> list[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        """Step 0 at every row: (state, a copy of the cache up to and with the row)."""
        cache: list[tuple[Tensor, Tensor]] = []
        found = []
        for row in range(len(tokens) - 1):
            state = self.position(tokens[row + 1], self.read(last[row]), row, cache)
            found.append((state, list(cache)))
        return found

    def states(self, tokens: list[int], last: Tensor, steps: int) -> dict[tuple[int, int], Tensor]:
        """Return the state of every (step, row), reading the document's own tokens."""
        found = {}
        for row, (start, cache) in enumerate(self.first(tokens, last)):
            found[0, row] = state = start
            for step in range(1, min(steps, len(tokens) - 1 - row)):
                state = self.position(tokens[row + 1 + step], state, row + step, cache)
                found[step, row] = state
        return found

    def accepted(self, tokens: list[int], last: Tensor, steps: int) -> list[int]:
        """Draft with the draft's own tokens from every row, and count what the document confirms."""
        lengths = [0] * len(tokens)
        for row, (start, cache) in enumerate(self.first(tokens, last)):
            state = start
            for step in range(steps):
                choice = int((self.head @ state).argmax())
                if row + 2 + step >= len(tokens) or choice != tokens[row + 2 + step]:
                    break
                lengths[row] += 1
                state = self.position(choice, state, row + 1 + step, cache)
        return lengths
