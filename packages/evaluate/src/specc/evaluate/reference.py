"""The verifier once more, in transformers: hidden states and logits that owe vLLM nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """A row as the verifier reads it.

    `tokens` int64 `[tokens + ahead]`: the row, and the greedy tokens after it. `hidden_states`
    `[tokens + ahead, layers, hidden]`, zero behind the row's end, where no draft starts.
    `logits` float32 `[places, vocabulary]` of the places asked for.
    """

    tokens: Tensor
    hidden_states: Tensor
    logits: Tensor


class Reference:
    """A verifier in transformers, on `device`, in `dtype`."""

    def __init__(self, folder: Path, *, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
        self._model.eval().to(device)
        self._device = device

    def read(self, row: Sequence[int], *, layers: Sequence[int], ahead: int, places: Sequence[int] = ()) -> Reading:
        """Read a row and go on greedily for `ahead` tokens, past an end-of-sequence token as well.

        `layers` are hidden-state ids: id l is the input of decoder layer l, `hidden_states[l]` in transformers.
        The logits at place p of the row predict token p + 1.
        """
        import torch

        with torch.inference_mode():
            tokens = torch.tensor([row], device=self._device)  # [1, tokens]
            keep = torch.tensor([*places, len(row) - 1], device=self._device)
            out = self._model(tokens, output_hidden_states=True, use_cache=True, logits_to_keep=keep)
            states = torch.stack([out.hidden_states[layer][0] for layer in layers], dim=1)  # [tokens, layers, hidden]
            logits = out.logits[0].float().cpu()  # [places + 1, vocabulary]
            newest, cache = out.logits[:, -1:].argmax(-1), out.past_key_values  # [1, 1]
            found = [tokens]
            for _ in range(ahead):
                found.append(newest)
                out = self._model(newest, past_key_values=cache, use_cache=True)
                newest, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        ahead_states = states.new_zeros(ahead, *states.shape[1:])
        return Reading(
            tokens=torch.cat(found, 1)[0].cpu(),
            hidden_states=torch.cat([states, ahead_states]).cpu(),
            logits=logits[:-1],
        )

    def logits(self, row: Sequence[int]) -> Tensor:
        """Return the logits after a row, float32 `[vocabulary]`."""
        return self.read(row, layers=[0], ahead=0, places=[len(row) - 1]).logits[0]
