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
        from transformers import (
            MODEL_FOR_CAUSAL_LM_MAPPING,
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
        )

        config = AutoConfig.from_pretrained(str(folder))
        text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        kind: Any = AutoModelForCausalLM if text else AutoModelForImageTextToText
        # torch's attention has no cap on its logits, and transformers takes it for Gemma 2 all the same.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        self._model: Any = kind.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), attn_implementation="eager" if capped else None
        )
        self._folder = folder
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
        self,
        row: Sequence[int],
        *,
        layers: Sequence[int],
        ahead: int,
        places: Sequence[int] = (),
        images: Sequence[bytes] = (),
    ) -> tuple[Reading, Tensor]:
        """Read a row, of whose tokens some stand for `images`, and go on greedily for `ahead` tokens.

        It goes on past an end-of-sequence token as well.

        `layers` are hidden-state ids: id l is the input of decoder layer l, `hidden_states[l]` in transformers.
        Returns the row with the tokens after it, whose states are zero since no draft starts there, and the logits
        fp32 `[places, vocabulary]`; those at place p predict token p + 1.
        """
        import torch

        from specc.train.models import Reading

        with torch.inference_mode():
            tokens = torch.tensor([row])  # [1, tokens]
            keep = torch.tensor([*places, len(row) - 1], device=self._device)
            out, aux, last = self.forward(tokens, layers, logits_to_keep=keep, **self.shown(images))
            logits = out.logits[0].float().cpu()  # [places + 1, vocabulary]
            newest, cache = out.logits[:, -1:].argmax(-1), out.past_key_values  # [1, 1]
            found = [tokens.to(self._device)]
            for _ in range(ahead):
                found.append(newest)
                out = self._model(newest, past_key_values=cache, use_cache=True)
                newest, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        none = (0,) * 2 * (aux.dim() - 1)
        aux = torch.nn.functional.pad(aux, (*none, 0, ahead)).cpu()
        last = torch.nn.functional.pad(last, (0, 0, 0, ahead)).cpu()
        return Reading(torch.cat(found, 1)[0].cpu(), aux, last), logits[:-1]

    def forward(self, tokens: Tensor, layers: Sequence[int], **options: Any) -> tuple[Any, Tensor, Tensor]:
        """Run the model over tokens `[1, tokens]`; return its output and the states that a `Reading` has."""
        import torch

        out = self._model(tokens.to(self._device), output_hidden_states=True, use_cache=True, **options)
        last = self._last[0]  # [tokens, hidden]
        states = [out.hidden_states[layer][0] for layer in layers]
        return out, torch.stack(states, 1) if states else last.new_zeros(len(last), 0, last.shape[-1]), last

    def shown(self, images: Sequence[bytes]) -> dict[str, Any]:
        """Return what the model is given beside tokens that stand for images."""
        if not images:
            return {}
        from transformers import AutoImageProcessor

        from specc.evaluate.prompts import opened

        processor: Any = AutoImageProcessor.from_pretrained(str(self._folder))
        found = processor(images=[opened(image) for image in images], return_tensors="pt")
        return {name: tensor.to(self._device) for name, tensor in found.items()}

    def open(self, layers: Sequence[int]) -> Session:
        """Return a row without a token yet; `layers` as in `read`."""
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self._model.config)
        cache.activate_past_recording()  # or layers that keep a window alone could not forget
        return Session(self, layers, cache)

    def ends(self) -> frozenset[int]:
        """Return the tokens after which vLLM ends an answer: those of the generation settings and the tokenizer's."""
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self._model.config.name_or_path)
        found: Any = self._model.generation_config.eos_token_id
        return frozenset({*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id} - {None})

    def logits(self, row: Sequence[int], images: Sequence[bytes] = ()) -> Tensor:
        """Return the logits after a row, float32 `[vocabulary]`; `images` as in `read`."""
        return self.read(row, layers=[], ahead=0, places=[len(row) - 1], images=images)[1][0]


class Session:
    """A row that the verifier reads piece by piece, and can go back in. Its first piece is the prompt."""

    def __init__(self, verifier: Reference, layers: Sequence[int], cache: Any) -> None:
        self._verifier, self._layers, self._cache = verifier, layers, cache
        self._ids: list[int] = []
        self._aux: list[Tensor] = []
        self._last: list[Tensor] = []

    def read(self, tokens: Sequence[int], keep: int, images: Sequence[bytes] = ()) -> Tensor:
        """Read further tokens; return the logits after each of the last `keep`, `[keep, vocabulary]`, fp32 or wider.

        Some of the tokens stand for `images`.
        """
        import torch

        with torch.inference_mode():
            out, aux, last = self._verifier.forward(
                torch.tensor([tokens]), self._layers, past_key_values=self._cache, logits_to_keep=keep,
                **self._verifier.shown(images),
            )  # fmt: skip
        self._ids += tokens
        self._aux += aux.cpu().unbind()
        self._last += last.cpu().unbind()
        return out.logits[0].to(torch.promote_types(out.logits.dtype, torch.float32)).cpu()

    def drop(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self._cache.crop(-count)
        for kept in (self._ids, self._aux, self._last):
            del kept[len(kept) - count :]

    def reading(self, newest: int) -> Reading:
        """Return the document that ends with a token not read yet, whose states are zero."""
        import torch

        from specc.train.models import Reading

        aux, last = (torch.stack([*rows, torch.zeros_like(rows[-1])]) for rows in (self._aux, self._last))
        return Reading(torch.tensor([*self._ids, newest]), aux, last)
