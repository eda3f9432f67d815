"""DFlash2 in the speculators format (type `dflash2`, format version 0.9)."""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format
from specc.export.formats.dflash import block_draft, block_rows


def draft(config: Tree) -> dict[str, Any]:
    """Return what decides a DFlash2 checkpoint's layout, from its configuration; raises `KeyError`."""
    return {
        **block_draft(config, "dflash2"),
        "convolution": {"kernel": config["conv_kernel_size"], "group": config["conv_group_size"]},
        "selector": {"rank": config["selector_rank"], "candidates": config["selector_top_k"]},
    }


def rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what is particular to a DFlash2 draft, for its card."""
    convolution, selector = draft["convolution"], draft["selector"]
    return [
        *block_rows(draft),
        (
            "convolutions",
            f"over {convolution['kernel']} tokens of the block, in groups of {convolution['group']} channels",
        ),
        (
            "selector",
            f"of rank {selector['rank']}, among {selector['candidates']} candidates, weighted {selector['weight']}",
        ),
    ]


DFLASH2 = Format(
    algorithm="dflash2",
    architecture="DFlash2DraftModel",
    config_class="DFlash2SpeculatorConfig",
    draft=draft,
    rows=rows,
)
