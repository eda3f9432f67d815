"""DFlash as z-lab publishes it.

From `dflash/model.py` of z-lab/dflash (`DFlashDraftModel`): Qwen3's layers, `layers.N.*`, with `fc`, `hidden_norm` and
`norm`, and neither embeddings nor a head, which are the verifier's. `target_layer_ids` are layers whose outputs are
read (`extract_context_feature`): one less than the ids here. `block_size`, `mask_token_id` and `target_layer_ids`
stand in `dflash_config` or at the top. Windows and causality are as vLLM 0.32 resolves them
(`qwen3_dflash.py`, `_resolve_layer_attention`), which follows z-lab's. Some folders have queries, keys and values as
one `qkv_proj` (the converter of vllm-project/speculators splits those, too). That converter also drops `g_proj` and
`aux_hidden_norms`, which are computed with; here they are unknown tensors, and an error.

ModelOpt's `DFlashExporter` writes the same layout.
"""

from __future__ import annotations

from typing import Any

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree
from specc.core.errors import SpeccError
from specc.core.layouts.base import (
    Ignored,
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

SHARED = ("embed_tokens.weight", "lm_head.weight")
"""What block drafts take from the verifier."""


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    inside, name = source.get("dflash_config") or {}, architecture(source)
    if not inside and name != "DFlashDraftModel":
        return "`config.json` has no `dflash_config`, and `architectures` is not `DFlashDraftModel`"
    kind = inside.get("projector_type", "dflash")
    if kind not in (None, "dflash") or name not in ("DFlashDraftModel", ""):
        return f"it is a block draft of another kind, `{kind if kind != 'dflash' else name}`"
    return None


def own(source: Tree, key: str) -> Any:
    """Return a value of `dflash_config`, or that of the top where it is not there; raises `KeyError` for neither."""
    inside = source.get("dflash_config") or {}
    return inside[key] if inside.get(key) is not None else source[key]


def block(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return what any block draft says of its section, for full vocabularies and for reduced ones."""
    return {
        "layers": int(source["num_hidden_layers"]),
        "vocabulary": vocabulary(source),
        "block_size": int(own(source, "block_size")),
        "intermediate_size": int(source["intermediate_size"]),
        "mask_token": int(own(source, "mask_token_id")),
    }


def attention(source: Tree) -> tuple[int | None, bool]:
    """Return the window that all layers have, and whether a block's tokens see only those before them.

    Raises `SpeccError` for what vLLM would run and the format cannot say: causal blocks without a window.
    """
    inside = source.get("dflash_config") or {}
    seen = window(source)
    if seen is None and inside.get("use_swa"):
        seen = int(inside["swa_window_size"] if "swa_window_size" in inside else source["sliding_window"])
    elif seen is not None:
        seen = int(inside.get("swa_window_size", seen))
    said = source.get("is_causal") if source.get("is_causal") is not None else inside.get("causal")
    causal = bool(said) if said is not None else seen is not None and not inside.get("use_swa")
    if causal and seen is None:
        raise SpeccError("the source's blocks are causal and see all positions before them, and in the format only"
                         " blocks with a window are causal", hint="vLLM serves the folder as it is")  # fmt: skip
    return seen, causal


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft section's part that a folder decides."""
    scale, cap = verifier.get("embedding_scale", 1.0), verifier.get("logit_softcap")
    for inside in (None, "dflash_config"):
        require(source, "output_multiplier", 1.0, inside=inside)
        require(source, "final_logit_softcapping", cap, inside=inside)
        require(source, "attention_sink_bias", False, inside=inside)
        require(source, "attention_value_scale", 1.0, inside=inside)
    given = source.get("input_embedding_scale", (source.get("dflash_config") or {}).get("input_embedding_scale", 1.0))
    if float(given) != scale:
        raise SpeccError(f"the source reads embeddings times {given}, and the verifier's layer multiplies by {scale:g}",
                         hint="in the format a draft reads what the verifier's embedding layer gives")  # fmt: skip
    seen, causal = attention(source)
    return {
        "algorithm": "dflash",
        **block(source, verifier),
        "hidden_state_layers": following(own(source, "target_layer_ids"), verifier),
        "sample_from_anchor": False,
        "sliding_window": seen,
        "sliding_window_causal": causal,
    }


def places(spec: TensorSpec, draft: Tree, config: Tree) -> list[tuple[Place, ...]]:
    """Return how a folder may hold a tensor: queries, keys and values apart, or one below the other."""
    found = [(Place(spec.name, spec.shape),)]
    layer, _, part = spec.name.rpartition(".self_attn.")
    if layer and part in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
        query = config["num_attention_heads"] * config["head_dim"]
        value = config["num_key_value_heads"] * config["head_dim"]
        ends = {"q": (0, query), "k": (query, query + value), "v": (query + value, query + 2 * value)}
        whole = (query + 2 * value, spec.shape[1])
        found.append((Place(f"{layer}.self_attn.qkv_proj.weight", whole, take=ends[part[0]]),))
    return found


def ignored(name: str, draft: Tree, config: Tree) -> Ignored | None:
    """Return why a copy of the verifier's embeddings or head has no place."""
    if name in SHARED:
        return Ignored("a copy of the verifier's own, which the draft shares", "verifier")
    return same_vocabulary(name, draft, config)


DFLASH = Layout(
    name="dflash",
    title="DFlash of z-lab",
    algorithm="dflash",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: draft["block_size"] - 1,
    places=places,
    ignored=ignored,
    filled={"embed_tokens.weight": "layer", "t2d": "d2t"},
)
