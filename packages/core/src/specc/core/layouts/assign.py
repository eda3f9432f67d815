"""Which of a source's tensors becomes which of the format's: every one of both is accounted for, or it is an error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree
from specc.core.errors import SpeccError
from specc.core.layouts.base import Fill, Ignored, Layout, Place

Found = Mapping[str, tuple[int, ...] | None]
"""Shapes of a source's tensors by name; None where only names are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Where every tensor of the format is from, and why those of the source that are in none of them are left out."""

    taken: Mapping[TensorSpec, tuple[Place, ...]]
    filled: Mapping[TensorSpec, Fill]
    ignored: Mapping[str, Ignored]


def assign(row: Layout, draft: Tree, config: Tree, found: Found) -> Assignment:
    """Return where every tensor is from, for what a layout's `draft` and `decoder` return.

    Raises one `SpeccError` that names every tensor which is unknown, missing, there twice or of another shape.
    """
    ways = {spec: row.places(spec, draft, config) for spec in row.tensors(draft, config)}
    known = {place.name: place for some in ways.values() for way in some for place in way}
    left_out = {name: why for name in found if name not in known and (why := row.ignored(name, draft, config))}
    unknown = {name: shape for name, shape in found.items() if name not in known and name not in left_out}
    taken: dict[TensorSpec, tuple[Place, ...]] = {}
    filled: dict[TensorSpec, Fill] = {}
    problems: list[str] = []
    for spec, some in ways.items():
        there = [way for way in some if all(place.name in found for place in way)]
        partly = [place.name for way in some for place in way if place.name in found]
        if len(there) > 1:
            problems.append(f"{_both(there)} are the same tensor")
        elif there:
            taken[spec] = there[0]
            problems += _misshapen(there[0], found)
        elif spec.name in row.filled and not partly:
            filled[spec] = row.filled[spec.name]
        else:
            problems.append(_missing(some, found, unknown))
    expected = [name for name in known if name not in found]
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, expected or list(known), n=1, cutoff=0.4)
        problems.append(f"`{name}` is not known" + (f"; the nearest name is `{near[0]}`" if near else ""))
    if problems := list(dict.fromkeys(problems)):
        count = f"{len(problems)} tensors of the source do" if len(problems) > 1 else "1 tensor of the source does"
        shown = "; ".join(problems[:SHOWN]) + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
        raise SpeccError(f"{count} not fit the layout `{row.name}`, {row.title}: {shown}",
                         hint="nothing is left out of a conversion without a reason; name another layout with `--from`"
                         " if it is of another")  # fmt: skip
    return Assignment(taken=taken, filled=filled, ignored=left_out)


SHOWN = 12
"""Problems that are said one by one."""


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the ones before it, which say nothing of what is where."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _misshapen(way: tuple[Place, ...], found: Found) -> list[str]:
    wrong: list[str] = []
    for place in way:
        shape = found[place.name]
        if shape is not None and plain(shape) != plain(place.shape):
            wrong.append(f"`{place.name}` is {list(shape)}, not {list(place.shape)}")
    return wrong


def _missing(ways: list[tuple[Place, ...]], found: Found, unknown: dict[str, tuple[int, ...] | None]) -> str:
    """Say what is missing; one that is there under a near name is told as one misnamed tensor."""
    way = max(ways, key=lambda way: sum(place.name in found for place in way))
    place = next(place for place in way if place.name not in found)
    alike = [name for name, shape in unknown.items() if shape is None or plain(shape) == plain(place.shape)]
    near = [(other.name, name) for some in ways for other in some
            for name in difflib.get_close_matches(other.name, alike, n=1, cutoff=0.7)]  # fmt: skip
    if near:
        wanted, there = near[0]
        del unknown[there]
        return f"`{wanted}` is named `{there}`"
    names = " or ".join(f"`{way[0].name}`" for way in ways)
    return f"{names if len(way) == 1 else f'`{place.name}`'} {list(place.shape)} is missing"


def _both(ways: list[tuple[Place, ...]]) -> str:
    return " and ".join(f"`{way[0].name}`" for way in ways)


def largest(row: Layout, draft: Tree, config: Tree) -> int:
    """Return the most bytes that the weights of such a source have: in fp64, with a copy of embeddings and head."""
    count = sum(math.prod(spec.shape) for spec in row.tensors(draft, config))
    return 8 * (count + 2 * config["vocab_size"] * config["hidden_size"]) + SLACK


SLACK = 16 << 20
"""Bytes that pickles and headers may have beside the weights."""
