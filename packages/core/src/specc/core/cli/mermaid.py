"""A lineage as a flowchart that Mermaid draws (https://mermaid.js.org), and so do GitHub and GitLab in Markdown."""

from __future__ import annotations

from specc.core.cli.drawing import label, lines, title
from specc.core.cli.lineage import Lineage


def mermaid(lineage: Lineage) -> str:
    """Return the flowchart, a line each node and each edge."""
    names = {digest: f"n{index}" for index, digest in enumerate(lineage.nodes)}
    chart = ["flowchart LR", f"accTitle: {_quoted(title(lineage))}"]
    for digest, node in lineage.nodes.items():
        chart.append(f'{names[digest]}["{"<br/>".join(map(_quoted, lines(node)))}"]')
    for edge in lineage.edges():
        said = f'|"{_quoted(label(edge))}"|' if label(edge) else ""
        chart.append(f"{names[edge.source.digest]} -->{said} {names[edge.target.digest]}")
    chart.append("classDef shown stroke-width:3px")
    chart.append(f"class {','.join(names[digest] for digest in lineage.shown)} shown")
    return "\n  ".join(chart) + "\n"


def _quoted(text: str) -> str:
    """Write what could be syntax inside quotes as Mermaid's codes of characters."""
    return "".join(letter if letter.isalnum() or letter in " _.-" else f"#{ord(letter)};" for letter in text)
