"""DFlash in the speculators format (type `dflash`, format version 0.9)."""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format


def block_draft(config: Tree, algorithm: str) -> dict[str, Any]:
    """Return what decides the layout of any block draft's checkpoint, from its configuration; raises `KeyError`."""
    decoder = config["transformer_layer_config"]
    return {
        "algorithm": algorithm,
        "layers": decoder["num_hidden_layers"],
        "vocabulary": config["draft_vocab_size"],
        "hidden_state_layers": list(config["aux_hidden_state_layer_ids"]),
        "block_size": config["block_size"],
        "sample_from_anchor": config["sample_from_anchor"],
        "sliding_window": decoder["sliding_window"],
        "sliding_window_causal": not config["sliding_window_non_causal"],
        "intermediate_size": decoder["intermediate_size"],
        "mask_token": config["mask_token_id"],
    }


def draft(config: Tree) -> dict[str, Any]:
    """Return what decides a DFlash checkpoint's layout, from its configuration; raises `KeyError`."""
    return block_draft(config, "dflash")


def block_rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what a card says of any block draft."""
    layers = ", ".join(str(layer) for layer in draft["hidden_state_layers"])
    window = draft["sliding_window"]
    seen = "all positions before the block" if window is None else f"positions less than {window} away"
    inside = "earlier tokens" if window is not None and draft["sliding_window_causal"] else "all tokens"
    first = "the anchor's slot proposes too" if draft["sample_from_anchor"] else "the anchor's slot proposes nothing"
    weights = draft["position_weights"]
    knobs = ", ".join(f"{name} {value}" for name, value in weights.items() if name != "name")
    return [
        ("verifier layers read", f"{layers} (id k is the input of layer k)"),
        ("block", f"{draft['block_size']} tokens, {first}; masks are token {draft['mask_token']}"),
        ("attention", f"{seen}, and {inside} of the block"),
        ("blocks learnt from in a step", f"at most {draft['anchors']}"),
        ("weights of a block's tokens", f"{weights['name']} ({knobs})" if knobs else weights["name"]),
    ]


DFLASH = Format(
    algorithm="dflash",
    architecture="DFlashDraftModel",
    config_class="DFlashSpeculatorConfig",
    draft=draft,
    rows=block_rows,
)
