"""The table of algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from specc.core.algorithms.base import Algorithm
from specc.core.algorithms.eagle3 import EAGLE3
from specc.core.errors import SpeccError

ALGORITHMS: Final[Mapping[str, Algorithm]] = {row.name: row for row in (EAGLE3,)}


def algorithm(name: str) -> Algorithm:
    """Return an algorithm's row; raises `SpeccError` for a name that is not in the table."""
    try:
        return ALGORITHMS[name]
    except KeyError:
        known = ", ".join(f"`{key}`" for key in sorted(ALGORITHMS))
        raise SpeccError(f"no algorithm `{name}`", hint=f"these are known: {known}") from None
