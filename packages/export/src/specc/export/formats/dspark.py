"""DSpark in the speculators format (type `dspark`, format version 0.9)."""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format
from specc.export.formats.dflash import block_draft, block_rows


def draft(config: Tree) -> dict[str, Any]:
    """Return what decides a DSpark checkpoint's layout, from its configuration; raises `KeyError`."""
    reads, enabled = config["confidence_head_with_markov"], config["enable_confidence_head"]
    return {
        **block_draft(config, "dspark"),
        "markov": {"type": config["markov_head_type"], "rank": config["markov_rank"]},
        "confidence": {"with_markov": reads} if enabled else None,
    }


def rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what is particular to a DSpark draft, for its card."""
    markov, confidence = draft["markov"], draft["confidence"]
    head = "none"
    if confidence is not None:
        reads = "the state and the token before" if confidence["with_markov"] else "the state"
        head = f"reads {reads}; its loss weighs {confidence['weight']}"
    return [
        *block_rows(draft),
        ("bias from the token before", f"{markov['type']}, rank {markov['rank']}"),
        ("confidence head", head),
    ]


DSPARK = Format(
    algorithm="dspark",
    architecture="DSparkDraftModel",
    config_class="DSparkSpeculatorConfig",
    draft=draft,
    rows=rows,
)
