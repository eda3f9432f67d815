"""The table of formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from specc.core.algorithms import ALGORITHMS
from specc.core.errors import SpeccError
from specc.export.formats.base import Format
from specc.export.formats.dflash import DFLASH
from specc.export.formats.dflash2 import DFLASH2
from specc.export.formats.dspark import DSPARK
from specc.export.formats.eagle3 import EAGLE3
from specc.export.formats.mtp import MTP
from specc.export.formats.peagle import PEAGLE
from specc.export.formats.xpress import XPRESS

FORMATS: Final[Mapping[str, Format]] = {
    row.algorithm: row for row in (EAGLE3, DFLASH, PEAGLE, DFLASH2, XPRESS, MTP, DSPARK)
}

if FORMATS.keys() != ALGORITHMS.keys():
    raise ImportError(f"half-registered algorithms: {sorted(FORMATS.keys() ^ ALGORITHMS.keys())}")


def speculator_format(name: str, where: str | None = None) -> Format:
    """Return an algorithm's row; raises `SpeccError` for a type that is not in the table."""
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(f"`{key}`" for key in sorted(FORMATS))
        raise SpeccError(
            f"speculators of type `{name}` cannot be read or written", where=where, hint=f"these are known: {known}"
        ) from None
