"""Sources mixed by weight: every beginning of the mix has each source's part of the rows, to within one row."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

Item = TypeVar("Item")


def mixed(streams: Sequence[Iterator[Item]], weights: Sequence[float]) -> Generator[Item, None, int]:
    """Yield the items of all streams, each in its own order, and return which of them ran out and ended the mix.

    Of the first *t* items stream *i* has given more than *t w_i / W - 1* and fewer than *t w_i / W + 1*, *W* being the
    sum of the weights. Nothing is drawn at random: the next item is of the stream that must give one soonest, among
    those that are behind (Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980). So a mix depends
    on the weights and on the streams alone, and items behind the end of a stream change nothing before them.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    whole, slack = sum(parts), max(1, 2 * len(parts) - 2)
    given, count = [0] * len(parts), 0
    while True:
        count += 1
        behind = [i for i, part in enumerate(parts) if slack * (part * count - given[i] * whole) >= whole]
        soonest = min(behind, key=lambda i: (Fraction((slack * (given[i] + 1) - 1) * whole, parts[i]), i))
        try:
            item = next(streams[soonest])
        except StopIteration:
            return soonest
        given[soonest] += 1
        yield item
