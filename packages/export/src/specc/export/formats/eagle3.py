"""EAGLE-3 in the speculators format (type `eagle3`, format version 0.9)."""

from __future__ import annotations

from typing import Any, Final

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format

FLAGS: Final = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


def draft(config: Tree) -> dict[str, Any]:
    """Return what decides an EAGLE-3 checkpoint's layout, from its configuration; raises `KeyError`."""
    decoder = config["transformer_layer_config"]
    return {
        "algorithm": "eagle3",
        "layers": decoder["num_hidden_layers"],
        "decoder": decoder["model_type"],
        "vocabulary": config["draft_vocab_size"],
        "hidden_state_layers": list(config["eagle_aux_hidden_state_layer_ids"]),
        "intermediate_size": decoder["intermediate_size"],
        **{flag: config[flag] for flag in FLAGS},
    }


def rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what is particular to an EAGLE-3 draft, for its card."""
    layers = ", ".join(str(layer) for layer in draft["hidden_state_layers"])
    norms = ", ".join(f"`{flag}` {str(draft[flag]).lower()}" for flag in FLAGS)
    window = draft["sliding_window"]
    return [
        ("verifier layers read", f"{layers} (id k is the input of layer k)"),
        ("norms", norms),
        ("attention", "all positions" if window is None else f"the last {window} positions"),
        ("draft steps unrolled in training", f"{draft['ttt']['steps']}, step k weighted {draft['ttt']['decay']}^k"),
    ]


EAGLE3 = Format(
    algorithm="eagle3",
    architecture="Eagle3DraftModel",
    config_class="Eagle3SpeculatorConfig",
    draft=draft,
    rows=rows,
)
