"""DFlash, packed against plain: masks, states, a training step, drafts; and a whole stage that learns."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from specc.core.algorithms import algorithm  # noqa: E402
from specc.train.models import Batch, Reading  # noqa: E402
from specc.train.models.block import (  # noqa: E402
    anchors_of,
    blocks_at,
    dpace,
    draw,
    exponential,
    seen_context,
    seen_own,
)
from train import blocks  # noqa: E402
from train.blocks import F64, SECTIONS, batch, document, masked, until  # noqa: E402
from train.plain_dflash import PlainBlock  # noqa: E402
from train.world import VERIFIER, VOCABULARY, World, assert_learnt, measured, stream  # noqa: E402

pytestmark = pytest.mark.engine

DFLASH = SECTIONS["dflash"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"sample_from_anchor": True, "layers": 1, "position_weights": {"name": "exponential", "gamma": 2.0}},
    {"sliding_window": 3, "position_weights": {"name": "uniform"}, "block_size": 5},
    {"sliding_window": 2, "sliding_window_causal": True, "position_weights": {"name": "exponential", "gamma": 4.0}},
    {"sliding_window": 1, "layers": 1, "hidden_state_layers": [4]},
    {"sliding_window_causal": True, "layers": 1, "position_weights": {"name": "dpace", "alpha": 0.0}},
]


def make(changes: dict[str, Any]) -> tuple[Any, PlainBlock]:
    """A random draft and its twin."""
    draft = DFLASH | changes
    model, weights, embed, head = blocks.make(draft)
    return model, PlainBlock(weights, draft, VERIFIER, embed, head)


def drawn(seen: Tensor) -> str:
    return " ".join("".join("x" if one else "." for one in row) for row in seen.tolist())


def test_what_slots_see_as_drawn() -> None:
    places = torch.tensor([3, 5])
    assert drawn(seen_context(places, 3, 0, 5, None)) == "xxx.. xxx.. xxx.. xxxxx xxxxx xxxxx"
    assert drawn(seen_context(places, 3, 0, 5, 4)) == "xxx.. .xx.. ..x.. ..xxx ...xx ....x"
    assert drawn(seen_own(4, None, causal=False)) == "xxxx xxxx xxxx xxxx"
    assert drawn(seen_own(4, 2, causal=False)) == "xx.. xxx. .xxx ..xx"
    assert drawn(seen_own(4, 2, causal=True)) == "x... xx.. .xx. ..xx"


def test_anchors_as_drawn() -> None:
    found = anchors_of(masked(9, (2, 6), (7, 9)))
    assert (found.places.tolist(), found.runs.tolist()) == ([2, 3, 4, 7], [3, 2, 1, 1])
    whole = anchors_of(masked(4, (0, 4)))
    assert (whole.places.tolist(), whole.runs.tolist()) == ([1, 2], [2, 1]), "the first token starts nothing"


def test_weights_as_drawn() -> None:
    counted = torch.tensor([[False, True, True, True]])
    ce = -torch.tensor([[0.3, 1.0, 0.5, 0.5]]).log()
    assert torch.allclose(dpace(ce, counted, 0.0), torch.tensor([[0, 7 / 4, 3 / 4, 1 / 4]]))
    assert torch.equal(dpace(ce, counted, 1.0), torch.tensor([[0.0, 3, 2, 1]]))
    assert exponential(3, 0, 4.0)[1:].tolist() == pytest.approx([1, math.exp(-1 / 4)])
    assert exponential(2, 1, 4.0).tolist() == pytest.approx([1, math.exp(-1 / 4)])


def test_anchors_are_drawn_in_proportion_from_the_stream() -> None:
    found = [anchors_of(masked(size, (2, size))) for size in (5, 44, 104)]  # 2, 41 and 101 anchors
    chosen = draw(found, 50, stream(1))
    assert [len(one.places) for one in chosen] == [1, 14, 34]
    for one, every in zip(chosen, found, strict=True):
        assert one.places.tolist() == sorted(set(one.places.tolist()))
        runs = dict(zip(every.places.tolist(), every.runs.tolist(), strict=True))
        assert [runs[place] for place in one.places.tolist()] == one.runs.tolist()
    again, other = draw(found, 50, stream(1)), draw(found, 50, stream(2))
    assert all(torch.equal(one.places, two.places) for one, two in zip(chosen, again, strict=True))
    assert any(not torch.equal(one.places, two.places) for one, two in zip(chosen, other, strict=True))
    assert [len(one.places) for one in draw(found, 1, stream(1))] == [1, 1, 1], "each document has one at least"
    assert draw(found, 144, stream(1)) == found


@pytest.mark.parametrize("changes", VARIANTS)
def test_states_equal_serving_one_block_at_a_time(changes: dict[str, Any]) -> None:
    model, plain = make(changes)
    reading = document(9, seed=5, aux=len(plain.draft["hidden_state_layers"]))
    places = torch.arange(1, 9)
    for slots in (model.slots, 2):
        states = model.states(blocks_at(reading, places, slots, F64))
        for place in places.tolist():
            expected = plain.block(int(reading.ids[place]), place, reading.aux, slots)
            assert torch.allclose(states[place - 1], expected, atol=1e-9), place


@pytest.mark.parametrize("changes", VARIANTS)
def test_training_step_equals_plain_torch(changes: dict[str, Any]) -> None:
    model, plain = make(changes)
    aux = len(plain.draft["hidden_state_layers"])
    documents = [document(8, 20, aux), document(9, 30, aux), document(5, 40, aux)]
    masks = [masked(8, (3, 8)), masked(9, (2, 4), (5, 9)), masked(5, (0, 5))]
    losses = {"kl": 0.5, "ce": 1.0}
    loss = model(Batch(batch(model, documents, masks)), losses)
    loss.backward()

    for name in plain.w:
        plain.w[name].requires_grad_()
    total, weights = torch.zeros((), dtype=F64), 0.0
    for reading, place, count in blocks.counted(documents, masks, model.slots - 1 + model.ahead):
        states = plain.block(int(reading.ids[place]), place, reading.aux, model.slots)[1 - model.ahead :]
        found = [
            blocks.compare(plain.head @ reading.last[place + number], plain.head @ states[number])
            for number in range(count)
        ]
        here = torch.stack([sum(weight * one[name] for name, weight in losses.items()) for one in found])
        count_for = blocks.place_weights(plain.draft["position_weights"], [one["ce"] for one in found])
        total, weights = total + (here * count_for).sum(), weights + float(count_for.sum())
    expected = total / weights
    assert torch.allclose(loss, expected, atol=1e-10)
    expected.backward()
    for name, parameter in model.named_parameters():
        theirs = plain.w[name].grad
        assert torch.allclose(parameter.grad, torch.zeros_like(parameter) if theirs is None else theirs, atol=1e-9), (
            name
        )
        assert parameter.grad.any() or plain.draft["sliding_window"] == 1, "a window of one sees nothing else"


@pytest.mark.parametrize("changes", VARIANTS[:3])
def test_guesses_follow_the_logits_of_a_plain_draft(changes: dict[str, Any]) -> None:
    model, plain = make(changes)
    reading = document(9, seed=7)
    for steps in (algorithm("dflash").drafted(plain.draft)[0], 2):
        guesses = model.guesses(reading, steps)
        assert guesses.shape == (9, steps)
        for place in range(1, 9):
            states = plain.block(int(reading.ids[place]), place, reading.aux, steps + 1 - model.ahead)
            start = until(reading, place)
            drafted = torch.zeros(0, dtype=torch.int64)
            for number, state in enumerate(states[1 - model.ahead :]):
                logits = model.logits(start, drafted, steps)
                assert torch.allclose(logits, plain.head @ state, atol=1e-9)
                drafted = torch.cat((drafted, 2 * logits.argmax()[None]))
                known = place + number < 9
                assert int(guesses[place - 1, number]) == (int(drafted[-1]) if known else -1)
            assert torch.equal(model.draft(start, steps), drafted)
        assert guesses[8].tolist() == [-1] * steps, "nothing starts from a token that is not there"
    assert torch.equal(model.logits(reading, drafted[:1]), model.logits(reading, drafted[:1], drafted_by(plain)))
    assert model.guesses(Reading(reading.ids[:1], reading.aux[:1], reading.last[:1]), 2).tolist() == [[-1, -1]]


def drafted_by(plain: PlainBlock) -> int:
    return algorithm("dflash").drafted(plain.draft)[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=160, validation=8)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [({}, "fp32"), ({"vocabulary": VOCABULARY, "sliding_window": 8, "sliding_window_causal": True}, "bf16")],
)
def test_a_stage_learns_to_draft(changes: dict[str, Any], precision: str, world: World) -> None:
    draft = DFLASH | {"anchors": 64} | changes
    train = {"precision": precision, "epochs": 5, "loss": {"ce": 1.0}}
    best = assert_learnt(metrics := measured(world.job(precision, draft=draft, train=train)), 3, chance=0.1)
    assert best["validation_loss"] < 0.5 < metrics["initial"]["validation_loss"]
