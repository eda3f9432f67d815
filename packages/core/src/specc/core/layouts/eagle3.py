"""EAGLE-3 as SafeAILab and SpecForge publish it.

From `eagle/traineagle3/cnets.py` and `eagle/model/cnets.py` of SafeAILab/EAGLE, and from
`specforge/modeling/draft/llama3_eagle.py` of sgl-project/SpecForge: one decoder layer, `midlayer.*` in both; others
that vLLM loads call it `layers.0.*`. Its residual is the fused state before its norm, the next step reads the last
state before the final norm, and there is no norm before `fc`; SpecForge has one of each state where `fc_norm` is set.
The head is the draft's own, `[draft_vocab_size, hidden]`. `d2t` are offsets: draft token i is token `i + d2t[i]`.
Both repositories write `d2t` and `t2d` of a whole vocabulary, too. Neither writes the embeddings.

The states read are those that go into layers 2, n/2 and n-3 (`modeling_llama_kv.py`). Where SpecForge's
`eagle_config.eagle_aux_hidden_state_layer_ids` names others, they are layers whose outputs are read
(`modeling/target`, and SGLang's `set_eagle3_layers_to_capture`), one less than the ids here. vLLM 0.32 takes the same
key for ids of inputs, and reads other states of such a folder than it was trained on; not so of the converted one.
"""

from __future__ import annotations

from typing import Any, Final

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree
from specc.core.layouts.base import (
    Layout,
    Names,
    Place,
    architecture,
    following,
    require,
    same_vocabulary,
    vocabulary,
    window,
)

STEPS: Final = 3
"""Tokens that are proposed at a time: no folder says, and an autoregressive draft can be asked for any number."""
NATIVE: Final = "use_last_layernorm"
"""A key of `eagle_config` that ModelOpt alone writes."""


def marks(source: Tree) -> bool:
    """Tell whether a configuration is that of an EAGLE-3 draft, in any layout."""
    return "eagle3" in architecture(source).lower() or "draft_vocab_size" in source or "eagle_config" in source


def parallel(source: Tree) -> bool:
    """Tell whether a configuration is that of a draft which proposes all tokens in one pass."""
    keys = ("mask_token_id", "pard_token", "ptd_token_id")
    return any(key in source for key in keys) or "peagle" in architecture(source).lower()


def other(source: Tree) -> bool:
    """Tell whether a configuration is that of a block draft."""
    return "dflash_config" in source or "markov_rank" in source or "target_layer_ids" in source


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    if not marks(source) or other(source):
        return "`config.json` is not one of an EAGLE-3 draft (`architectures`, `draft_vocab_size`)"
    if NATIVE in (source.get("eagle_config") or {}):
        return f"`eagle_config.{NATIVE}` is what ModelOpt writes"
    if parallel(source) or (names and "mask_hidden" in names):
        return "it has a mask token or a `mask_hidden`: it drafts in one pass"
    if names and not any(name.startswith(("midlayer.", "layers.0.")) for name in names):
        return "there is neither a `midlayer.*` nor a `layers.0.*`"
    return None


def layers_read(source: Tree, verifier: Tree) -> list[int]:
    """Return our ids of the states that an EAGLE-3 draft reads."""
    named = (source.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    count = verifier["num_hidden_layers"]
    return following(named, verifier) if named else [2, count // 2, count - 3]


def fused(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return what any of these drafts over fused states says of its section."""
    require(source, "use_aux_hidden_state", True, inside="eagle_config")
    require(source, "num_aux_hidden_states", len(layers_read(source, verifier)))
    return {
        "layers": int(source["num_hidden_layers"]),
        "decoder": "llama",
        "vocabulary": vocabulary(source),
        "hidden_state_layers": layers_read(source, verifier),
        "norm_before_residual": bool(source.get("norm_before_residual")),
        "norm_before_fc": False,
        "sliding_window": window(source),
        "intermediate_size": int(source["intermediate_size"]),
    }


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft section's part that a folder decides."""
    norms = {"fc_norm": bool(source.get("fc_norm")), "norm_output": bool(source.get("norm_output"))}
    return {"algorithm": "eagle3", **fused(source, verifier), **norms}


def places(spec: TensorSpec, draft: Tree, config: Tree) -> list[tuple[Place, ...]]:
    """Return what a folder may call a tensor: the first layer has two names."""
    _, first, rest = spec.name.rpartition("layers.0.")
    names = [f"midlayer.{rest}", spec.name] if first else [spec.name]
    return [(Place(name, spec.shape),) for name in names]


EAGLE3 = Layout(
    name="eagle3",
    title="EAGLE-3 of SafeAILab or SpecForge",
    algorithm="eagle3",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: STEPS,
    places=places,
    ignored=same_vocabulary,
    filled={"embed_tokens.weight": "weights", "t2d": "d2t"},
)
