"""P-EAGLE in the speculators format (type `peagle`, format version 0.9)."""

from __future__ import annotations

from typing import Any, Final

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format

FLAGS: Final = ("norm_before_residual", "norm_before_fc")


def draft(config: Tree) -> dict[str, Any]:
    """Return what decides a P-EAGLE checkpoint's layout, from its configuration; raises `KeyError`."""
    decoder = config["transformer_layer_config"]
    return {
        "algorithm": "peagle",
        "layers": decoder["num_hidden_layers"],
        "decoder": decoder["model_type"],
        "vocabulary": config["draft_vocab_size"],
        "hidden_state_layers": list(config["eagle_aux_hidden_state_layer_ids"]),
        "intermediate_size": decoder["intermediate_size"],
        "mask_token": config["mask_token_id"],
        **{flag: config[flag] for flag in FLAGS},
    }


def rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what is particular to a P-EAGLE draft, for its card."""
    layers = ", ".join(str(layer) for layer in draft["hidden_state_layers"])
    norms = ", ".join(f"`{flag}` {str(draft[flag]).lower()}" for flag in FLAGS)
    window, sampling = draft["sliding_window"], draft["sampling"]
    return [
        ("verifier layers read", f"{layers} (id k is the input of layer k)"),
        ("norms", norms),
        ("attention", "all positions" if window is None else f"the last {window} positions"),
        ("tokens proposed in one pass", f"{draft['depths']}, with token {draft['mask_token']} for those not known yet"),
        (
            "places learnt from in a step",
            f"at most {sampling['anchors']}, of which max({sampling['ratio']}^d, {sampling['floor']}) at depth d",
        ),
    ]


PEAGLE = Format(
    algorithm="peagle",
    architecture="PeagleDraftModel",
    config_class="PeagleSpeculatorConfig",
    draft=draft,
    rows=rows,
)
