"""DSpark as it is served, one token at a time: the twin that training is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from train.plain_dflash import PlainBlock


class PlainDSpark(PlainBlock):
    """One document; the two heads of a slot see its state and the token before what it proposes."""

    def before(self, slot: int) -> int:
        """How many tokens after the anchor the token stands that comes before what a slot proposes."""
        return slot if self.draft["sample_from_anchor"] else max(slot - 1, 0)

    def slots(self, states: Tensor, known: list[int]) -> list[tuple[Tensor, Tensor | None]]:
        """Return logits [draft vocabulary] and confidence of each slot whose token before is known.

        `states` [slots, hidden] are the block's, `known` the anchor and the tokens after it.
        """
        w = {name.removeprefix("markov_head."): value for name, value in self.w.items()}
        found, recurrent = [], torch.zeros(self.draft["markov"]["rank"], dtype=torch.float64)
        for slot, h in enumerate(states):
            if self.before(slot) >= len(known):
                break
            e = w["markov_w1.weight"][known[self.before(slot)]]
            factor = e
            if self.draft["markov"]["type"] == "gated":
                factor = torch.sigmoid(w["gate_proj.weight"] @ torch.cat((h, e)) + w["gate_proj.bias"]) * e
            elif self.draft["markov"]["type"] == "rnn":
                joint = w["joint_proj.weight"] @ torch.cat((recurrent, e, h)) + w["joint_proj.bias"]
                gate, candidate, out = joint.view(3, -1)
                recurrent = torch.sigmoid(gate) * recurrent + (1 - torch.sigmoid(gate)) * torch.tanh(candidate)
                factor = torch.tanh(out)
            found.append((self.head @ h + w["markov_w2.weight"] @ factor, self.confidence(h, e)))
        return found

    def confidence(self, h: Tensor, e: Tensor) -> Tensor | None:
        """The logit of a token's chance of acceptance."""
        if self.draft["confidence"] is None:
            return None
        reads = torch.cat((h, e)) if self.draft["confidence"]["with_markov"] else h
        return (self.w["confidence_head.proj.weight"] @ reads + self.w["confidence_head.proj.bias"])[0]

    def logits(self, states: Tensor, known: list[int]) -> Tensor:
        """The logits of the token after `known`, the anchor and the tokens after it."""
        return self.slots(states, known)[len(known) - bool(self.draft["sample_from_anchor"])][0]
