"""EAGLE-1, EAGLE-2 and HASS, which are one layout.

From `eagle/model/cnets1.py` of SafeAILab/EAGLE (EAGLE-2 is another way to draft with the same weights) and from what
vllm-project/speculators writes of HASS, a fork of it: `fc`, which reads the embedding and the verifier's last state
after its norm; decoder layers `layers.N.*`, of which the first has no `input_layernorm`; no final norm, and the
verifier's head. The speculators format that vLLM reads has no type for it. vLLM 0.32 serves it as
`EagleLlamaForCausalLM` (`llama_eagle.py`), from a folder of a plain Llama configuration with these tensors and
`"method": "eagle"`; its `fc` has no bias, and variants of HASS with further norms are not in it.
"""

from __future__ import annotations

from typing import Any

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree, decoder_layer
from specc.core.errors import SpeccError
from specc.core.layouts.base import Ignored, Layout, Names, architecture, require, vocabulary, window
from specc.core.layouts.eagle3 import STEPS, marks, other, parallel

BARE = "layers.0.input_layernorm.weight"
"""The norm that the first layer does without."""


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    if marks(source) or other(source) or parallel(source):
        return "`config.json` is that of a later draft"
    if architecture(source) not in ("LlamaForCausalLM", "EagleLlamaForCausalLM"):
        return f"`architectures` is `{architecture(source)}`, not `LlamaForCausalLM`"
    if names is None:
        few = int(source.get("num_hidden_layers") or 0) == 1
        return None if few else "`config.json` has more than one layer, as a plain model"
    if "fc.weight" not in names or not any(name.startswith("layers.0.") for name in names):
        return "there is no `fc.weight` with a `layers.0.*`"
    if any(name.startswith("model.") for name in names):
        return "tensors are named `model.*`, as a plain model's"
    return None


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return what decides the tensors."""
    require(source, "attention_bias", False)
    if vocabulary(source) != verifier["vocab_size"] or window(source) is not None:
        raise SpeccError("the source has a vocabulary or a window of its own",
                         hint="vLLM's `EagleLlamaForCausalLM` has neither")  # fmt: skip
    return {
        "algorithm": "eagle",
        "layers": int(source["num_hidden_layers"]),
        "intermediate_size": int(source["intermediate_size"]),
    }


def table(draft: Tree, config: Tree) -> list[TensorSpec]:
    """Return every tensor of the folder that vLLM serves."""
    hidden = config["hidden_size"]
    tensors = [
        TensorSpec("embed_tokens.weight", (config["vocab_size"], hidden), origin="verifier"),
        TensorSpec("fc.weight", (hidden, 2 * hidden)),
    ]
    for index in range(draft["layers"]):
        tensors += decoder_layer(f"layers.{index}", config, draft["intermediate_size"])
    return sorted((spec for spec in tensors if spec.name != BARE), key=lambda spec: spec.name)


def ignored(name: str, draft: Tree, config: Tree) -> Ignored | None:
    """Return why a bias of the fusion has no place."""
    return Ignored("a bias of zeros, which changes nothing", "zeros") if name == "fc.bias" else None


EAGLE = Layout(
    name="eagle",
    title="EAGLE-1, EAGLE-2 or HASS",
    algorithm="eagle",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: STEPS,
    ignored=ignored,
    filled={"embed_tokens.weight": "weights"},
    table=table,
)
