"""DFlash2 as it is served, one slot, one candidate at a time: the twin that training is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train.plain_dflash import PlainBlock


class PlainDFlash2(PlainBlock):
    """One document; each convolution is a sum over the slots that it reads."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kernels: dict[str, list[Tensor]] = {}

    def inside(self, x: list[Tensor], name: str, part: int) -> list[Tensor]:
        conv, (taps, group) = f"{name}_conv", self.draft["convolution"].values()
        if part == 0:  # the input decides both kernels
            made = [self.w[f"{conv}.kernel_projection.weight"] @ one for one in x]
            self.kernels[conv] = [one.view(2, taps, -1).repeat_interleave(group, -1) for one in made]
        found = []
        for slot in range(len(x)):
            kernel = self.w[f"{conv}.base_kernel"][part] + self.kernels[conv][slot][part]  # [taps, hidden]
            found.append(sum(kernel[tap] * x[slot - tap] for tap in range(min(taps, slot + 1))))
        return found

    def score(self, state: Tensor, before: int, candidate: int) -> Tensor:
        """The score of one candidate after one token."""
        name = "candidate_selector"
        context = self.w[f"{name}.predecessor_codebook"][before] * (self.w[f"{name}.hidden_projection.weight"] @ state)
        return self.head[candidate] @ state + context @ self.w[f"{name}.successor_codebook"][candidate]

    def candidates(self, state: Tensor) -> list[int]:
        """The tokens of the highest logits."""
        return (self.head @ state).topk(self.draft["selector"]["candidates"]).indices.tolist()

    def logits(self, state: Tensor, before: int) -> Tensor:
        """Return [vocabulary]: the candidates' scores, -inf for all others."""
        found = torch.full((len(self.head),), float("-inf"), dtype=state.dtype)
        for candidate in self.candidates(state):
            found[candidate] = self.score(state, before, candidate)
        return found
