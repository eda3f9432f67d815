"""MTP in the speculators format (type `mtp`, format version 0.9)."""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.export.formats.base import Format


def draft(config: Tree) -> dict[str, Any]:
    """Return what an MTP checkpoint's configuration says of its draft section: its decoder alone decides the layout."""
    _ = config
    return {"algorithm": "mtp"}


def rows(draft: Tree) -> list[tuple[str, str]]:
    """Return what is particular to an MTP draft, for its card."""
    init = "the verifier's own head" if draft["init"] is None else "an earlier speculator"
    return [
        ("weights at the start", init),
        ("served", "from inside the verifier's checkpoint: stitch it in first, vLLM does not load the head alone"),
        ("times the head is applied in training", f"{draft['steps']}, step k weighted {draft['decay']}^k / sum"),
    ]


MTP = Format(
    algorithm="mtp",
    architecture="MTPDraftModel",
    config_class="MTPSpeculatorConfig",
    draft=draft,
    rows=rows,
)
