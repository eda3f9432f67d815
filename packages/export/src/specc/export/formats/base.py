"""The row that each algorithm fills in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specc.core.algorithms.base import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """An algorithm's part of a speculator's `config.json`.

    `architecture` and `config_class` are the names that the format gives to its model and configuration.
    `draft(config)` is the draft section that decides the layout, from a whole configuration. `rows(draft)` is what a
    model card says of such a draft, as label and value.
    """

    algorithm: str
    architecture: str
    config_class: str
    draft: Callable[[Tree], dict[str, Any]]
    rows: Callable[[Tree], list[tuple[str, str]]]
