"""xPress in the speculators format (type `xpress`, format version 0.9)."""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format
from specc.export.formats.dflash import block_draft, block_rows


def draft(config: Tree) -> dict[str, Any]:
    """Return what decides an xPress checkpoint's layout, from its configuration; raises `KeyError`."""
    return {
        **block_draft(config, "xpress"),
        "refiner": {
            "rank": config["xpress_rank"],
            "mlp_ratio": config["xpress_mlp_ratio"],
            "passes": config["num_jacobi_passes"],
        },
    }


def rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what is particular to an xPress draft, for its card."""
    refiner = draft["refiner"]
    return [
        *block_rows(draft),
        ("refiner", f"of rank {refiner['rank']}, {refiner['passes']} passes"),
        (
            "losses",
            f"after the right tokens; mean of {refiner['rounds']} passes over its own tokens, weighted "
            f"{refiner['own_weight']}; without the refiner, weighted {refiner['base_weight']}",
        ),
    ]


XPRESS = Format(
    algorithm="xpress",
    architecture="XPressDraftModel",
    config_class="XPressSpeculatorConfig",
    draft=draft,
    rows=rows,
)
