"""EAGLE-1, EAGLE-2 and HASS, which are one layout.

From `eagle/model/cnets1.py` of SafeAILab/EAGLE (EAGLE-2 is another way to draft with the same weights) and from what
vllm-project/speculators writes of HASS, a fork of it: `fc`, which reads the embedding and the verifier's last state
after its norm; decoder layers `layers.N.*`, of which the first has no `input_layernorm`; no final norm, and the
verifier's head. Queries, keys and values have biases where `qkv_bias` says so, as EAGLE-2's drafts for Qwen2 do
(SafeAILab/EAGLE#117, #135); `fc` has one unless `bias` says no. The speculators format that vLLM reads has no type for
it. vLLM 0.32 serves it as `EagleLlamaForCausalLM` (`llama_eagle.py`), from a folder of a plain Llama configuration with
these tensors and `"method": "eagle"`.

There attention may have biases, and `fc` may not. What its bias b adds to the fused state x arrives in two places,
the first layer's attention and its residual, since there is no norm between: queries are W(x + b) = Wx + Wb, alike keys
and values, and x + b + attention is x + (attention + b). So Wb goes to their biases and b to that of attention's
output, and the draft is the same. Norms that variants of HASS have (vllm-project/vllm#14990) are not in vLLM 0.32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree, decoder_layer
from specc.core.errors import SpeccError
from specc.core.layouts.base import Ignored, Layout, Names, architecture, require, vocabulary, window
from specc.core.layouts.eagle3 import STEPS, marks, other, parallel

BARE = "layers.0.input_layernorm.weight"
"""The norm that the first layer does without."""
NORMS = (
    *("enorm.weight", "hnorm.weight", "embedding_layernorm.weight", "pre_lm_head_layernorm.weight", "norm.weight"),
    BARE,
)
"""Norms of variants: of the embedding and of the state before `fc`, of the last state, of the first layer's input."""
FUSED = "fc.bias"
INSIDE = tuple(f"layers.0.self_attn.{one}_proj.bias" for one in "qkvo")


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    if marks(source) or other(source) or parallel(source):
        return "`config.json` is that of a later draft"
    if architecture(source) not in ("LlamaForCausalLM", "EagleLlamaForCausalLM", "Qwen2ForCausalLM"):
        return f"`architectures` is `{architecture(source)}`, not `LlamaForCausalLM` or `Qwen2ForCausalLM`"
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


def seen(draft: Tree, names: Collection[str]) -> dict[str, Any]:
    """Return the draft with `biases`, the projections of attention that have one, `qkv` or `qkvo`, if there are any."""
    if FUSED in names and draft["layers"] == 1:
        return {**draft, "biases": "qkvo"}
    return {**draft, "biases": "qkv"} if any(name in names for name in INSIDE[:3]) else dict(draft)


def table(draft: Tree, config: Tree) -> list[TensorSpec]:
    """Return every tensor of the folder that vLLM serves."""
    hidden, size = config["hidden_size"], config["head_dim"]
    query, value = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    rows = {"q": query, "k": value, "v": value, "o": hidden}
    tensors = [
        TensorSpec("embed_tokens.weight", (config["vocab_size"], hidden), origin="verifier"),
        TensorSpec("fc.weight", (hidden, 2 * hidden)),
    ]
    for index in range(draft["layers"]):
        tensors += decoder_layer(f"layers.{index}", config, draft["intermediate_size"])
        tensors += [TensorSpec(f"layers.{index}.self_attn.{one}_proj.bias", (rows[one],))
                    for one in draft.get("biases", "")]  # fmt: skip
    return sorted((spec for spec in tensors if spec.name != BARE), key=lambda spec: spec.name)


def ignored(name: str, draft: Tree, config: Tree) -> Ignored | None:
    """Return why a bias has no place; raises `SpeccError` for a norm, which vLLM's class would leave out."""
    if name in NORMS:
        raise SpeccError(f"the source has a norm that vLLM does not compute: `{name}`",
                         note="vLLM 0.32 serves EAGLE-1, EAGLE-2 and HASS as `EagleLlamaForCausalLM`, which norms"
                         " neither what it reads nor what it gives",
                         hint="vLLM's first engine served such drafts, this one does not")  # fmt: skip
    if name == FUSED and draft.get("biases") == "qkvo":
        return Ignored("vLLM's `fc` has none, and what it adds is in the biases of attention", "folded")
    if name == FUSED or name in INSIDE[:3]:
        return Ignored("a bias of zeros, which changes nothing", "zeros")
    return None


EAGLE = Layout(
    name="eagle",
    title="EAGLE-1, EAGLE-2 or HASS",
    algorithm="eagle",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: STEPS,
    ignored=ignored,
    filled={"embed_tokens.weight": "weights", **dict.fromkeys(INSIDE, "folded")},
    seen=seen,
    table=table,
)
