"""Sources mixed by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from specc.datagen.mix import mixed


def streams(sizes: list[int]) -> list[Iterator[tuple[int, int]]]:
    return [iter([(i, k) for k in range(size)]) for i, size in enumerate(sizes)]


def drained(sizes: list[int], weights: list[float]) -> tuple[list[tuple[int, int]], int]:
    found: list[tuple[int, int]] = []
    mix = mixed(streams(sizes), weights)
    while True:
        try:
            found.append(next(mix))
        except StopIteration as end:
            return found, end.value


WEIGHTS = st.lists(st.sampled_from([0.1, 0.25, 0.3, 1.0, 2.0, 7.5, 1e-3]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS)
def test_every_beginning_has_each_part_to_within_one(weights: list[float]) -> None:
    found, _ = drained([120] * len(weights), weights)
    whole, given_ = sum(Fraction(str(weight)) for weight in weights), Counter[int]()
    for count, (source, _) in enumerate(found, 1):
        given_[source] += 1
        for i, weight in enumerate(weights):
            assert abs(given_[i] - count * Fraction(str(weight)) / whole) < 1


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.data())
def test_a_mix_ends_where_a_source_runs_out(weights: list[float], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=len(weights), max_size=len(weights)))
    found, ended = drained(sizes, weights)
    assert Counter(source for source, _ in found)[ended] == sizes[ended]
    for i in range(len(weights)):  # each source in its own order, from its start
        own = [k for source, k in found if source == i]
        assert own == list(range(len(own)))
    grown, _ = drained([size + data.draw(st.integers(0, 9)) for size in sizes], weights)
    assert grown[: len(found)] == found  # more rows change nothing before the end


def test_a_mix_as_it_is_read() -> None:
    found, ended = drained([3, 99], [0.3, 0.7])
    assert "".join("ab"[source] for source, _ in found) == "babbabbbabb"
    assert ended == 0
