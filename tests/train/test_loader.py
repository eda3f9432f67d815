"""What is made ahead: in order, the same as without a thread, no further than it may; errors are the asker's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from specc.train.determinism import stream  # noqa: E402
from specc.train.loader import AHEAD, Ahead  # noqa: E402
from specc.train.models import Batch, build, trained  # noqa: E402
from specc.train.order import Plan, Step  # noqa: E402
from specc.train.verifier import read_verifier  # noqa: E402
from train.world import PEAGLE, SMALL, TRAIN, VERIFIER, World, corpus  # noqa: E402

pytestmark = pytest.mark.engine


def bits(content: Any) -> list[torch.Tensor]:
    """All tensors of a batch."""
    if isinstance(content, torch.Tensor):
        return [content]
    if is_dataclass(content):
        content = [getattr(content, field.name) for field in fields(content)]
    return [one for part in content for one in bits(part)] if isinstance(content, list | tuple) else []


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_all_comes_in_order_and_ends() -> None:
    with Ahead(lambda item: item * item, iter(range(20))) as found:
        assert list(found) == [(item, item * item) for item in range(20)]
        with pytest.raises(StopIteration):
            next(found)
    assert not loaders()


def test_it_is_ahead_and_not_further_than_it_may() -> None:
    made: list[int] = []
    with Ahead(made.append, range(50)) as found:
        next(found)
        deadline = time.monotonic() + 10
        while len(made) < AHEAD + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(made) == AHEAD + 2, "one taken, two ready, one made and waiting for room"
    assert not loaders(), "left in the middle, it ends"
    assert len(made) == AHEAD + 2


def test_an_error_is_raised_where_its_item_is_asked_for() -> None:
    def halved(item: int) -> float:
        return 1 / (3 - item)

    with Ahead(halved, range(9)) as found:
        assert [next(found)[0] for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                next(found)

    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with Ahead(halved, items()) as found:
        assert next(found) == (1, 0.5)
        with pytest.raises(OSError, match="the disk is gone"):
            next(found)
    assert not loaders()


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_batches_have_the_bits_that_they_have_without_a_thread(tmp_path: Path, rank: int, world: int) -> None:
    made = World(tmp_path / "w")
    data = corpus(made)
    frozen = read_verifier(made.folder / "verifier", VERIFIER, None, torch.float32)
    weights = {spec.name: torch.zeros(spec.shape) for spec in trained(PEAGLE, VERIFIER)}
    head = replace(frozen.head, weight=frozen.head.weight[:SMALL])
    model = build(PEAGLE, VERIFIER, weights, replace(frozen, head=head), torch.arange(SMALL))
    plan = Plan(data, TRAIN, shuffle=True, window=1)

    def batch_of(step: Step) -> Batch:
        random = stream(42, "draft", "places", step.number)
        return data.batch(step.documents, model, frozen.normed, random, rank=rank, world=world)

    with Ahead(batch_of, plan.from_step(3)) as found:
        steps = 0
        for step, batch in found:
            assert step.number == 3 + steps
            own = bits(batch_of(step).content)
            assert len(own) > 5
            assert all(torch.equal(one, other) for one, other in zip(bits(batch.content), own, strict=True))
            steps += 1
    assert steps == plan.total - 3
