"""LLaVA in vLLM by transformers' classes, with the hidden states that a draft reads.

vLLM's Transformers backend asks the outermost model for them, and LLaVA's does not hand on what the Llama inside it
records: so they are taken here, where the decoder's layers are. vLLM imports this module in the process of the engine.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=MultiModalProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class Llava(TransformersMultiModalForCausalLM):
    """Transformers' LLaVA with vLLM's attention; id l is the input of decoder layer l, residual added."""

    _ids: tuple[int, ...] = ()

    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        """Take the states of these ids; the last id, the number of layers, is the last layer's output."""
        self._ids = layers
        self._taken: dict[int, torch.Tensor] = {}

        def take(layer: int, module: Any, inputs: Any, output: Any = None) -> None:
            found = inputs if output is None else output
            self._taken[layer] = (found[0] if isinstance(found, tuple) else found)[0]  # [tokens, hidden]

        model: Any = self.model
        decoder = model.language_model.layers
        for layer in layers:
            if layer == 0:
                decoder[0].register_forward_pre_hook(partial(take, layer))
            else:
                decoder[layer - 1].register_forward_hook(partial(take, layer))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what vLLM's backend does `[tokens, hidden]`, and beside it the states asked for, one of each id."""
        hidden = super().forward(*args, **kwargs)
        if not self._ids or not isinstance(hidden, torch.Tensor):
            return hidden
        return hidden, [self._taken.pop(layer) for layer in self._ids]
