"""DFlash as it is served, one block at a time, in plain torch: the twin that training is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from train.plain import Plain


class PlainBlock(Plain):
    """One document: every slot looks at every position in turn, nothing is packed, masked or shared."""

    def heads(self, x: Tensor, name: str, position: int | None) -> Tensor:
        """Project `x` [hidden] to [heads, size]; queries and keys are normed and turned to their position."""
        made = (self.w[f"{name}_proj.weight"] @ x).view(-1, self.verifier["head_dim"])
        if position is None:
            return made
        return self.turn(torch.stack([self.norm(head, f"{name}_norm") for head in made]), position)

    def sees(self, query: int, key: int) -> bool:
        """Whether a slot at position `query` sees position `key`, of the context or of its block."""
        window = self.draft["sliding_window"]
        if window is None:
            return True
        if key > query:
            return not self.draft["sliding_window_causal"] and key - query < window
        return query - key < window

    def inside(self, x: list[Tensor], name: str, part: int) -> list[Tensor]:
        """What the family's members do to a block's slots `x` before (part 0) and after (1) attention or MLP."""
        return x

    def block(self, token: int, place: int, aux: Tensor, slots: int) -> Tensor:
        """Return the final, normed states [slots, hidden] of the block that starts at `place` with `token`."""
        context = [self.norm(self.w["fc.weight"] @ aux[row].reshape(-1), "hidden_norm") for row in range(place)]
        tokens = [token] + [self.draft["mask_token"]] * (slots - 1)
        hidden = [self.embed[one] for one in tokens]
        for index in range(self.draft["layers"]):
            name = f"layers.{index}"
            x = [self.norm(one, f"{name}.input_layernorm") for one in hidden]
            x = self.inside(x, f"{name}.attention", 0)
            attn = f"{name}.self_attn"
            read = [*enumerate(context), *enumerate(x, place)]
            keys = {position: self.heads(one, f"{attn}.k", position) for position, one in read}
            values = {position: self.heads(one, f"{attn}.v", None) for position, one in read}
            added = []
            for slot, one in enumerate(x):
                position, q = place + slot, self.heads(one, f"{attn}.q", place + slot)
                seen = [key for key in keys if self.sees(position, key)]
                found = []
                for head in range(len(q)):
                    group = head // (len(q) // len(keys[0]))
                    scores = torch.stack([q[head] @ keys[key][group] / len(q[head]) ** 0.5 for key in seen]).softmax(0)
                    found.append(sum(p * values[key][group] for p, key in zip(scores, seen, strict=True)))
                added.append(self.w[f"{attn}.o_proj.weight"] @ torch.cat(found))
            hidden = [one + two for one, two in zip(hidden, self.inside(added, f"{name}.attention", 1), strict=True)]
            x = [self.norm(one, f"{name}.post_attention_layernorm") for one in hidden]
            added = []
            for one in self.inside(x, f"{name}.mlp", 0):
                gate = self.w[f"{name}.mlp.gate_proj.weight"] @ one
                up = self.w[f"{name}.mlp.up_proj.weight"] @ one
                added.append(self.w[f"{name}.mlp.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up))
            hidden = [one + two for one, two in zip(hidden, self.inside(added, f"{name}.mlp", 1), strict=True)]
        return torch.stack([self.norm(one, "norm") for one in hidden])


def dpace(chances: Tensor) -> Tensor:
    """Return what each of some chances of acceptance adds to the expected number of accepted tokens: s dE/ds."""
    s = chances.detach().requires_grad_()
    expected = sum(torch.prod(s[: end + 1]) for end in range(len(s)))
    (slope,) = torch.autograd.grad(expected, s)
    return (s * slope).detach()
