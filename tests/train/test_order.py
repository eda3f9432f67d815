"""The order of training: windows of shards, what is in their batches, and the steps of a plan."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from specc.core.errors import SpeccError  # noqa: E402
from specc.train.data import Documents  # noqa: E402
from specc.train.determinism import stream  # noqa: E402
from specc.train.order import WAITING, Plan, epoch_windows, shard_windows  # noqa: E402
from train.world import TRAIN, World, corpus  # noqa: E402

pytestmark = pytest.mark.engine
SIZE = 40
"""Rows of a batch."""


def documents(shards: list[int]) -> Documents:
    """Documents of 3 to 13 rows, so many in each shard."""
    columns = [[shard, 0, 0, 9, 3 + (7 * i) % 11, i] for shard, count in enumerate(shards) for i in range(count)]
    return Documents([torch.tensor(columns, dtype=torch.int32).reshape(-1, 6)])


def plain(found: Documents, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch without windows: all documents permuted at once, and every choice tried."""
    order = torch.randperm(len(found), generator=stream(seed, "draft", "order", epoch)).tolist()
    done: list[list[int]] = []
    seen = 0
    while order:
        while sum(found[place].rows for place in order[: max(0, seen - WAITING)]) < SIZE and seen < len(order):
            seen = min(seen + WAITING, len(order))
        sums: dict[int, tuple[int, ...]] = {found[order[0]].rows: ()}
        for place in order[1:seen]:
            more = {total + found[place].rows: (*some, place) for total, some in sums.items()}
            sums = more | sums
            if SIZE in sums:
                break
        total = max(one for one in sums if one <= SIZE)
        done.append([order[0], *sums[total]])
        order = [place for place in order if place not in done[-1]]
        seen -= len(done[-1])
    return done


@pytest.mark.parametrize("shards", [[300], [0, 120, 0, 100, 80]])
def test_one_window_is_the_order_without_windows(shards: list[int]) -> None:
    found = documents(shards)
    [window] = epoch_windows(found, SIZE, 3, seed=1, epoch=2, shuffle=True)
    assert window.batches == plain(found, 1, 2)
    assert list(window.shards) == [shard for shard, count in enumerate(shards) if count]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    found = documents([60] * 5)

    def order(**changes: Any) -> Any:
        return epoch_windows(found, SIZE, 2, **{"seed": 1, "epoch": 1, "shuffle": True} | changes)

    assert order() == order()
    assert order() != order(epoch=2)
    assert order() != order(seed=2)
    assert {tuple(window.shards) for window in order()} != {tuple(window.shards) for window in order(epoch=2)}
    straight = order(shuffle=False)
    assert [list(window.shards) for window in straight] == [[0, 1], [2, 3], [4]]
    first = [place for batch in straight[0].batches for place in batch]
    assert first != list(range(120)), "what fits best"
    assert sorted(first) == list(range(120))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(1, 10), st.integers(0, 9), st.booleans())
def test_every_document_is_trained_once_and_no_shard_outside_its_window(
    shards: list[int], size: int, epoch: int, shuffle: bool
) -> None:
    found = documents(shards)
    windows = epoch_windows(found, SIZE, size, seed=3, epoch=epoch, shuffle=shuffle)
    batches = [batch for window in windows for batch in window.batches]
    assert sorted(place for batch in batches for place in batch) == list(range(len(found)))
    assert all(sum(found[place].rows for place in batch) <= SIZE for batch in batches)
    assert sorted(shard for window in windows for shard in window.shards) == [
        shard for shard, count in enumerate(shards) if count
    ]
    for window in windows:
        seen = {found[place].shard for batch in window.batches for place in batch}
        assert seen == set(window.shards)
        assert len(seen) <= size
    assert [window.last for window in windows] == [False] * (len(windows) - 1) + [True] * bool(windows)


def test_shards_are_drawn_into_windows() -> None:
    assert shard_windows(range(7), 3, seed=42, epoch=1, shuffle=True) == [[0, 3, 5], [1, 2, 4], [6]]
    assert shard_windows([4, 0, 2], 2, seed=42, epoch=1, shuffle=False) == [[0, 2], [4]]
    assert shard_windows([], 2, seed=42, epoch=1, shuffle=True) == []


def test_batches_are_full() -> None:
    for shuffle in (True, False):
        [window] = epoch_windows(documents([300]), SIZE, 1, seed=1, epoch=1, shuffle=shuffle)
        fill = [sum(documents([300])[place].rows for place in batch) for batch in window.batches]
        assert sum(fill) / (SIZE * len(fill)) > 0.99


def test_a_document_longer_than_a_batch_is_refused() -> None:
    with pytest.raises(SpeccError, match="row 7 has 50 positions and a batch takes 40"):
        epoch_windows(Documents([torch.tensor([[0, 0, 0, 52, 50, 7]], dtype=torch.int32)]), SIZE, 1, seed=1, epoch=1,
                      shuffle=True)  # fmt: skip


@pytest.mark.parametrize("size", [1, 2])
def test_a_plan_ends_and_can_be_taken_up_anywhere(tmp_path: Path, size: int) -> None:
    data = corpus(World(tmp_path / "w"))
    by_epochs = Plan(data, TRAIN | {"epochs": 3}, shuffle=True, window=size)
    steps = list(by_epochs.from_step(0))
    assert len(steps) == by_epochs.total
    assert [step.epoch for step in steps] == sorted(step.epoch for step in steps)
    assert [step.epoch for step in steps if step.last] == [1, 2, 3]
    for epoch in (1, 2, 3):
        own = [step for step in steps if step.epoch == epoch]
        assert sorted(document.row for step in own for document in step.documents) == list(range(4, 40))
        done: list[int] = []
        for step in own:
            assert not {document.shard for document in step.documents} & set(done)
            done += step.done
        assert sorted(done) == [0, 1]
    for start in range(len(steps)):
        assert list(by_epochs.from_step(start)) == steps[start:]
        windows = list(by_epochs.windows_from(start))
        assert sum(len(window.batches) - begun for _, window, begun in windows) == len(steps) - start
        assert all(one <= other for (one, _, _), (other, _, _) in pairwise(windows))
    by_steps = Plan(data, TRAIN | {"epochs": None, "steps": len(steps) - 2}, shuffle=True, window=size)
    assert list(by_steps.from_step(0)) == steps[:-2]
    with pytest.raises(SpeccError, match="training has no end"):
        Plan(data, TRAIN | {"epochs": None, "steps": None}, shuffle=True, window=size)
