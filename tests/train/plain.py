"""EAGLE-3 as it is served, one position at a time, in plain torch: the twin that training is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Plain:
    """One document: keys are kept in a list, nothing is packed, masked, shared or fused."""

    def __init__(self, weights: Mapping[str, Tensor], draft: Mapping[str, Any], verifier: Mapping[str, Any],
                 embed: Tensor, head: Tensor) -> None:  # fmt: skip
        self.w, self.draft, self.verifier, self.embed, self.head = weights, draft, verifier, embed, head

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean() + self.verifier["rms_norm_eps"]).sqrt() * self.w[f"{name}.weight"]

    def fuse(self, aux: Tensor) -> Tensor:
        """[aux, hidden] -> [hidden]."""
        if self.draft["norm_before_fc"]:
            aux = self.norm(aux.reshape(-1), "input_norm").view_as(aux)
        if self.draft["fc_norm"]:
            aux = torch.stack([self.norm(one, f"fc_norm.{i}") for i, one in enumerate(aux)])
        return self.w["fc.weight"] @ aux.reshape(-1)

    def turn(self, x: Tensor, position: int) -> Tensor:
        """Rotary embedding as complex numbers; x [heads, size]."""
        half = x.shape[-1] // 2
        base = self.verifier["rope_parameters"]["rope_theta"]
        angle = position * base ** -(torch.arange(half, dtype=torch.float64) / half)
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), -1)

    def position(
        self, token: int, hidden: Tensor, position: int, caches: list[list[tuple[int, Tensor, Tensor]]]
    ) -> tuple[Tensor, Tensor]:
        """Run one position, append its keys to `caches`; return (final normed state, next step's hidden state)."""
        for index in range(self.draft["layers"]):
            name = f"layers.{index}"
            x = self.norm(hidden, f"{name}.input_layernorm") if index else None
            residual = hidden
            if index == 0:
                normed = self.norm(hidden, f"{name}.hidden_norm")
                x = torch.cat((self.norm(self.embed[token], f"{name}.input_layernorm"), normed))
                residual = normed if self.draft["norm_before_residual"] else hidden
            size, window = self.verifier["head_dim"], self.draft["sliding_window"]
            q, k, v = ((self.w[f"{name}.self_attn.{one}_proj.weight"] @ x).view(-1, size) for one in ("q", "k", "v"))
            if self.draft["decoder"] == "qwen3":
                q, k = (
                    torch.stack([self.norm(head, f"{name}.self_attn.{one}_norm") for head in heads])
                    for one, heads in (("q", q), ("k", k))
                )
            caches[index].append((position, self.turn(k, position), v))
            q, heads = self.turn(q, position), []
            seen = [one for one in caches[index] if window is None or one[0] > position - window]
            for head in range(len(q)):
                group = head // (len(q) // len(k))
                scores = torch.stack([q[head] @ key[group] / size**0.5 for _, key, _ in seen]).softmax(0)
                heads.append(sum(p * value[group] for p, (_, _, value) in zip(scores, seen, strict=True)))
            residual = residual + self.w[f"{name}.self_attn.o_proj.weight"] @ torch.cat(heads)
            y = self.norm(residual, f"{name}.post_attention_layernorm")
            gate, up = self.w[f"{name}.mlp.gate_proj.weight"] @ y, self.w[f"{name}.mlp.up_proj.weight"] @ y
            hidden = residual + self.w[f"{name}.mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up)
        normed = self.norm(hidden, "norm")
        return normed, normed if self.draft["norm_output"] else hidden

    def first(self, tokens: list[int], aux: Tensor) -> list[tuple[Tensor, Tensor, list[Any]]]:
        """Step 0 at every row: (state, next hidden, a copy of the caches up to and with the row)."""
        caches: list[Any] = [[] for _ in range(self.draft["layers"])]
        found = []
        for row in range(len(tokens) - 1):
            state, following = self.position(tokens[row + 1], self.fuse(aux[row]), row, caches)
            found.append((state, following, [list(cache) for cache in caches]))
        return found

    def states(self, tokens: list[int], aux: Tensor, steps: int) -> dict[tuple[int, int], Tensor]:
        """Return the state of every (step, row), reading the document's own tokens."""
        found = {}
        for row, start in enumerate(self.first(tokens, aux)):
            state, following, caches = start
            found[0, row] = state
            for step in range(1, min(steps, len(tokens) - 1 - row)):
                state, following = self.position(tokens[row + 1 + step], following, row + step, caches)
                found[step, row] = state
        return found

    def accepted(self, tokens: list[int], aux: Tensor, steps: int, d2t: Tensor) -> list[int]:
        """Draft with the draft's own tokens from every row, and count what the document confirms."""
        lengths = [0] * len(tokens)
        for row, start in enumerate(self.first(tokens, aux)):
            state, following, caches = start
            for step in range(steps):
                choice = int((self.head @ state).argmax())
                choice += int(d2t[choice])
                if row + 2 + step >= len(tokens) or choice != tokens[row + 2 + step]:
                    break
                lengths[row] += 1
                state, following = self.position(choice, following, row + 1 + step, caches)
        return lengths
