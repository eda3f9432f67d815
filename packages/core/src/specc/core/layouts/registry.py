"""The table of layouts, and how a folder's is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args

from specc.core.algorithms.base import LayoutName, Tree
from specc.core.errors import SpeccError
from specc.core.layouts.base import Layout, Names, decoder
from specc.core.layouts.dflash import DFLASH
from specc.core.layouts.dspark import DSPARK
from specc.core.layouts.eagle import EAGLE
from specc.core.layouts.eagle3 import EAGLE3
from specc.core.layouts.modelopt import MODELOPT
from specc.core.layouts.mtp import MTP, SPECULATORS
from specc.core.layouts.peagle import PEAGLE

LAYOUTS: Final[Mapping[str, Layout]] = {
    row.name: row for row in (EAGLE3, MODELOPT, PEAGLE, DFLASH, DSPARK, MTP, SPECULATORS, EAGLE)
}

if LAYOUTS.keys() != set(get_args(LayoutName)):
    raise ImportError(f"half-registered layouts: {sorted(LAYOUTS.keys() ^ set(get_args(LayoutName)))}")


def layout(name: str) -> Layout:
    """Return a layout's row; raises `SpeccError` for a name that is not in the table."""
    try:
        return LAYOUTS[name]
    except KeyError:
        known = ", ".join(f"`{key}`" for key in LAYOUTS)
        raise SpeccError(f"no layout `{name}`", hint=f"these are known: {known}") from None


def detect(config: Tree, names: Names) -> Layout:
    """Return the layout of a folder, from its `config.json` and, where they are known, its tensors' names.

    Raises `SpeccError` if it is none of the table's, with a reason for each, or several of them.
    """
    reasons = {row.name: mismatch(row, config, names) for row in LAYOUTS.values()}
    found = [name for name, why in reasons.items() if why is None]
    if len(found) == 1:
        return LAYOUTS[found[0]]
    if found:
        several = " and of ".join(f"`{name}`" for name in found)
        raise SpeccError(f"the folder may be of the layout {several}", hint="say which with `--from NAME`")
    lines = [f"{name}: {why}" for name, why in reasons.items()]
    raise SpeccError("the folder is of no known layout", note="\n  ".join(lines),
                     hint="`--from NAME` takes it for one all the same, and says which tensors do not fit")  # fmt: skip


def mismatch(row: Layout, config: Tree, names: Names) -> str | None:
    """Say why a folder is not of a layout, None if it is."""
    if "speculators_model_type" in config and row.name != "speculators":
        return "`config.json` is in the speculators format"
    return row.mismatch(config, names)


def section(row: Layout, config: Tree, verifier: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a source's `config.json` says: the part of a draft section, and the decoder's configuration.

    Raises `SpeccError` for a configuration that lacks or garbles something, or that has no place in the format.
    """
    try:
        return row.draft(config, verifier), decoder(row, config, verifier)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpeccError(
            f"the source's `config.json` lacks or garbles {error}",
            hint=f"it is read as {row.title}; name another layout with `--from` if it is of another",
        ) from error
