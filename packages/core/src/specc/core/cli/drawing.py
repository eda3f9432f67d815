"""The words in a drawing of a lineage: out of manifests, which a store may have from anybody."""

from __future__ import annotations

from typing import Final

from specc.core.cli.lineage import Edge, Lineage, Node
from specc.core.cli.options import human
from specc.core.language.text import printable

LONGEST: Final = 15
"""Characters of a name that a box has room for."""


def title(lineage: Lineage) -> str:
    """Return what the drawing shows."""
    return "Lineage of " + " and ".join(named(lineage.nodes[digest]) for digest in lineage.shown)


def description(lineage: Lineage) -> str:
    """Return the drawing in words, for those who cannot see it."""
    return "; ".join(
        f"{named(node)} is made of {', '.join(named(lineage.nodes[digest]) for digest in node.inputs.values())}"
        for node in lineage.nodes.values()
        if node.inputs
    )


def named(node: Node) -> str:
    """Return an artifact's stage and the start of its digest."""
    return " ".join(lines(node)[:2])


def lines(node: Node) -> tuple[str, str, str]:
    """Return what stands in an artifact's box: its stage, the start of its digest, its size."""
    if node.stage is None or node.size is None:
        return "artifact", node.short, "not in the store"
    return printable(node.stage, LONGEST), node.short, human(node.size)


def slot(edge: Edge) -> str:
    """Return the name of an input."""
    return printable(edge.slot, LONGEST)


def label(edge: Edge) -> str:
    """Return what stands at an arrow: the name of the input where it is not that of the stage that made it."""
    return "" if edge.slot == edge.source.stage else slot(edge)
