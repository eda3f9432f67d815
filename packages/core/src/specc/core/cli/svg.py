"""A lineage as an SVG: boxes and arrows in one file that needs nothing else, on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree as ET

from specc.core.cli.drawing import description, label, lines, slot, title
from specc.core.cli.layout import Place, places
from specc.core.cli.lineage import Edge, Lineage, Node

MARGIN: Final = 24
WIDTH: Final = 136
HEIGHT: Final = 62
"""Of a box, in pixels."""
ACROSS: Final = WIDTH + 52
DOWN: Final = HEIGHT + 22
"""From one box to the next."""
TURN: Final = 46
"""How far in front of a box an arrow turns off to it."""
PORTS: Final = 44
"""The part of a box's side where arrows end."""
STYLE: Final = """
.lineage text { font-family: "DejaVu Sans", Helvetica, Arial, sans-serif; font-size: 10.5px; fill: #1f2a44 }
.lineage .paper { fill: #fbfcff } .lineage .stage { font-size: 13px; font-weight: 600 }
.lineage .fact { opacity: .85 } .lineage .node rect { fill: #eef2ff; stroke: #8792ad }
.lineage .gone rect { fill: none; stroke-dasharray: 4 3 } .lineage .shown rect { fill: #1f2a44; stroke: #1f2a44 }
.lineage .shown text { fill: #ffffff } .lineage .edge { fill: none; stroke: #5b6785; stroke-width: 1.6 }
.lineage .head, .lineage .slot { fill: #5b6785 }
@media (prefers-color-scheme: dark) {
  .lineage text { fill: #e6eaf5 } .lineage .paper { fill: #141a29 }
  .lineage .node rect { fill: #232d47; stroke: #5b6785 } .lineage .gone rect { fill: none }
  .lineage .shown rect { fill: #dfe6fb; stroke: #dfe6fb } .lineage .shown text { fill: #141a29 }
  .lineage .edge { stroke: #8792ad } .lineage .head, .lineage .slot { fill: #a3aec8 }
}
"""
"""Of the drawing alone, also where it stands in a page of other drawings."""


def svg(lineage: Lineage) -> str:
    """Return the drawing; a box has its whole digest as a tooltip and in `id`, an arrow names both ends in `data-`."""
    where = places(lineage)
    wide = 2 * MARGIN + ACROSS * max(place.column for place in where.values()) + WIDTH
    high = 2 * MARGIN + DOWN * max(place.row for place in where.values()) + HEIGHT
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "lineage",
                              "viewBox": f"0 0 {wide} {high}", "width": str(wide), "height": str(high), "role": "img",
                              "aria-labelledby": "specc-title specc-desc"})  # fmt: skip
    _put(root, "title", {"id": "specc-title"}, title(lineage))
    _put(root, "desc", {"id": "specc-desc"}, description(lineage))
    _put(root, "style", {}, STYLE)
    marker = _put(_put(root, "defs", {}), "marker", {
        "id": "specc-arrow", "viewBox": "0 0 10 10", "refX": 9, "refY": 5, "markerWidth": 7, "markerHeight": 7,
        "orient": "auto",
    })  # fmt: skip
    _put(marker, "path", {"class": "head", "d": "M0 0 10 5 0 10z"})
    _put(root, "rect", {"class": "paper", "width": wide, "height": high, "rx": 12})
    for node in lineage.nodes.values():
        incoming = [edge for edge in lineage.edges() if edge.target is node]
        _arrows(root, sorted(incoming, key=lambda edge: where[edge.source.digest].row), where)
    for digest, node in lineage.nodes.items():
        kind = "node shown" if digest in lineage.shown else "node gone" if node.size is None else "node"
        _box(root, node, where[digest], kind)
    return ET.tostring(root, encoding="unicode") + "\n"


def _box(root: ET.Element, node: Node, place: Place, kind: str) -> None:
    left, top = _corner(place)
    group = _put(root, "g", {"class": kind, "id": f"specc-{node.digest}"})
    _put(group, "title", {}, f"sha256:{node.digest}")
    _put(group, "rect", {"x": left, "y": top, "width": WIDTH, "height": HEIGHT, "rx": 8})
    for line, part, drop in zip(lines(node), ("stage", "fact", "fact"), (21, 37, 52), strict=True):
        _put(group, "text", {"class": part, "text-anchor": "middle", "x": left + WIDTH // 2, "y": top + drop}, line)


def _arrows(root: ET.Element, edges: list[Edge], where: Mapping[str, Place]) -> None:
    """Draw the arrows to a box, which end one below another in the order of the rows that they come from."""
    for index, edge in enumerate(edges):
        (left, top), (end, side) = _corner(where[edge.source.digest]), _corner(where[edge.target.digest])
        start, row, bend = left + WIDTH, top + HEIGHT // 2, end - TURN // 2
        port = side + (HEIGHT - PORTS) // 2 + PORTS * (2 * index + 1) // (2 * len(edges))
        _put(root, "path", {
            "class": "edge", "marker-end": "url(#specc-arrow)", "data-from": edge.source.digest,
            "data-to": edge.target.digest, "data-slot": slot(edge),
            "d": f"M{start} {row} H{end - TURN} C{bend} {row} {bend} {port} {end - 3} {port}",
        })  # fmt: skip
        if said := label(edge):
            _put(root, "text", {"class": "slot", "text-anchor": "end", "x": end - 9, "y": port - 5}, said)


def _corner(place: Place) -> tuple[int, int]:
    """Return the left upper corner of a box."""
    return MARGIN + ACROSS * place.column, MARGIN + DOWN * place.row


def _put(parent: ET.Element, tag: str, attributes: Mapping[str, object], text: str | None = None) -> ET.Element:
    """Add an element; what is markup in its text and attributes is escaped when it is written."""
    element = ET.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
    element.text = text
    return element
