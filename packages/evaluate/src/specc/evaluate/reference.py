"""The verifier once more, in transformers: hidden states and logits that owe vLLM nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specc.core.errors import Exit, SpeccError

if TYPE_CHECKING:
    from torch import Tensor

    from specc.train.models import Reading


class Reference:
    """A verifier in transformers, on `device`, in `dtype`."""

    def __init__(self, folder: Path, *, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
        self._model.eval().to(device)
        self._device = device
        self._last: Tensor
        norm = getattr(self._model.get_decoder(), "norm", None)
        if norm is None:
            raise SpeccError("the verifier has no final norm by the name `norm`", where=str(folder), code=Exit.STAGE,
                             hint="its last state cannot be read; no architecture is guessed")  # fmt: skip
        norm.register_forward_pre_hook(self._keep)

    def _keep(self, _: Any, inputs: tuple[Tensor, ...]) -> None:
        (self._last,) = inputs

    def read(
        self, row: Sequence[int], *, layers: Sequence[int], ahead: int, places: Sequence[int] = ()
    ) -> tuple[Reading, Tensor]:
        """Read a row and go on greedily for `ahead` tokens, past an end-of-sequence token as well.

        `layers` are hidden-state ids: id l is the input of decoder layer l, `hidden_states[l]` in transformers.
        Returns the row with the tokens after it, whose states are zero since no draft starts there, and the logits
        fp32 `[places, vocabulary]`; those at place p predict token p + 1.
        """
        import torch

        from specc.train.models import Reading

        with torch.inference_mode():
            tokens = torch.tensor([row], device=self._device)  # [1, tokens]
            keep = torch.tensor([*places, len(row) - 1], device=self._device)
            out = self._model(tokens, output_hidden_states=True, use_cache=True, logits_to_keep=keep)
            last = self._last[0]  # [tokens, hidden]
            states = [out.hidden_states[layer][0] for layer in layers]
            aux = torch.stack(states, 1) if states else last.new_zeros(len(row), 0, last.shape[-1])
            logits = out.logits[0].float().cpu()  # [places + 1, vocabulary]
            newest, cache = out.logits[:, -1:].argmax(-1), out.past_key_values  # [1, 1]
            found = [tokens]
            for _ in range(ahead):
                found.append(newest)
                out = self._model(newest, past_key_values=cache, use_cache=True)
                newest, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        none = (0,) * 2 * (aux.dim() - 1)
        aux = torch.nn.functional.pad(aux, (*none, 0, ahead)).cpu()
        last = torch.nn.functional.pad(last, (0, 0, 0, ahead)).cpu()
        return Reading(torch.cat(found, 1)[0].cpu(), aux, last), logits[:-1]

    def logits(self, row: Sequence[int]) -> Tensor:
        """Return the logits after a row, float32 `[vocabulary]`."""
        return self.read(row, layers=[], ahead=0, places=[len(row) - 1])[1][0]
