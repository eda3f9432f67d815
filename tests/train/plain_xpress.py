"""xPress as it is served, one slot at a time: the twin that training is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from train.plain_dflash import PlainBlock


class PlainXPress(PlainBlock):
    """One document; what a slot takes from the ones before it is a sum over them."""

    def refine(self, states: Tensor, before: list[int]) -> Tensor:
        """Return the refined logits [draft vocabulary] of the last slot that has a token before what it proposes.

        `states` [slots, hidden] are those of the whole block, `before` the tokens of its first slots.
        """
        w = {name.removeprefix("refiner_head."): value for name, value in self.w.items()}
        mean = w["down_g.weight"] @ (sum(states) / len(states))
        read = [
            w["in_proj.weight"] @ torch.cat((w["down_h.weight"] @ state, mean, w["token_embed.weight"][token]))
            for state, token in zip(states, before, strict=False)
        ]
        last = len(before) - 1
        x = read[last] + sum(w["mix_l"][:, last, slot] * one for slot, one in enumerate(read))
        gate = w["mlp_gate.weight"] @ x
        x = x + w["mlp_down.weight"] @ (gate * torch.sigmoid(gate) * (w["mlp_up.weight"] @ x))
        return self.head @ states[last] + w["readout.weight"] @ x

    def drafts(self, states: Tensor, known: list[int], tokens: int, passes: int, scale: int) -> list[list[int]]:
        """Return the drafts of `tokens` tokens after 0 to `passes` passes; verifier token = `scale` * draft token.

        `known` are the tokens before what the first slots propose: the anchor, and one before it if it has a slot.
        """
        skipped = len(known) - 1  # the anchor's own slot
        found = [[scale * int((self.head @ state).argmax()) for state in states[skipped:]]]
        for _ in range(passes):
            before = [*known, *found[-1]]
            logits = [self.refine(states, before[: skipped + 1 + place]) for place in range(tokens)]
            found.append([scale * int(one.argmax()) for one in logits])
        return found
