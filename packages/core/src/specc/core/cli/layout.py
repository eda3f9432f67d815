"""Where the boxes of a lineage's drawing stand.

A column is how many stages an artifact is away from what had no inputs. From a box a line goes to the right along its
row, where nothing else stands up to the last of its readers, and turns off in front of each of them: no line crosses a
box.
"""

from __future__ import annotations

from dataclasses import dataclass

from specc.core.cli.lineage import Lineage


@dataclass(frozen=True, slots=True)
class Place:
    """Where a box stands, both counted from 0."""

    column: int
    row: int


def places(lineage: Lineage) -> dict[str, Place]:
    """Return the places by digest: each right of its inputs, on the free row that is nearest to theirs."""
    columns = _columns(lineage)
    ends = dict(columns)
    for edge in lineage.edges():
        ends[edge.source.digest] = max(ends[edge.source.digest], columns[edge.target.digest] - 1)
    found: dict[str, Place] = {}
    busy: list[int] = []  # by row, the last column where something stands or passes
    for digest in sorted(columns, key=columns.__getitem__):
        rows = [found[made_of].row for made_of in lineage.nodes[digest].inputs.values() if made_of in found]
        row = _nearest(busy, columns[digest], sum(rows) / len(rows) if rows else 0)
        busy[row : row + 1] = [ends[digest]]
        found[digest] = Place(columns[digest], row)
    return found


def _columns(lineage: Lineage) -> dict[str, int]:
    """Return each artifact's column; inputs come before what was made of them, but for those of a damaged store."""
    columns: dict[str, int] = {}
    for digest, node in lineage.nodes.items():
        columns[digest] = 1 + max((columns.get(made_of, -1) for made_of in node.inputs.values()), default=-1)
    return columns


def _nearest(busy: list[int], column: int, wanted: float) -> int:
    """Return the row that is free at a column and nearest to the wanted one; a new one if none is free."""
    free = [row for row, last in enumerate(busy) if last < column] or [len(busy)]
    return min(free, key=lambda row: abs(row - wanted))
