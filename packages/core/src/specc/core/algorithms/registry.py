"""The table of algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from specc.core.algorithms.base import Algorithm
from specc.core.algorithms.dflash import DFLASH
from specc.core.algorithms.dflash2 import DFLASH2
from specc.core.algorithms.dspark import DSPARK
from specc.core.algorithms.eagle3 import EAGLE3
from specc.core.algorithms.mtp import MTP
from specc.core.algorithms.peagle import PEAGLE
from specc.core.algorithms.xpress import XPRESS
from specc.core.errors import SpeccError

ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    row.name: row for row in (EAGLE3, PEAGLE, DFLASH, DFLASH2, DSPARK, XPRESS, MTP)
}


def algorithm(name: str) -> Algorithm:
    """Return an algorithm's row; raises `SpeccError` for a name that is not in the table."""
    try:
        return ALGORITHMS[name]
    except KeyError:
        known = ", ".join(f"`{key}`" for key in sorted(ALGORITHMS))
        raise SpeccError(f"no algorithm `{name}`", hint=f"these are known: {known}") from None
