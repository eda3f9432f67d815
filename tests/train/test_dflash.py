"""DFlash, packed against plain: masks, states, a training step, drafts; and a whole stage that learns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.contracts import StageResult  # noqa: E402
from specc.train.losses import Head  # noqa: E402
from specc.train.models import Batch, Frozen, Reading, block, build, rows, trained  # noqa: E402
from specc.train.models.block import (  # noqa: E402
    anchors_of,
    blocks_at,
    dpace,
    draw,
    exponential,
    seen_context,
    seen_own,
)
from train import plain_dflash  # noqa: E402
from train.plain_dflash import PlainBlock  # noqa: E402
from train.world import HIDDEN, SMALL, VERIFIER, VOCABULARY, World, finish, stream  # noqa: E402

pytestmark = pytest.mark.engine
F64 = torch.float64
D2T = torch.arange(SMALL)  # draft token i is verifier token 2 i

DFLASH: dict[str, Any] = {
    "algorithm": "dflash", "layers": 2, "vocabulary": SMALL, "hidden_state_layers": [2, 3, 4], "block_size": 4,
    "sample_from_anchor": False, "sliding_window": None, "sliding_window_causal": False, "intermediate_size": 96,
    "mask_token": 2, "anchors": 512, "position_weights": {"name": "dpace", "alpha": 0.5}, "init": None,
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {},
    {"sample_from_anchor": True, "layers": 1, "position_weights": {"name": "exponential", "gamma": 2.0}},
    {"sliding_window": 3, "position_weights": {"name": "uniform"}, "block_size": 5},
    {"sliding_window": 2, "sliding_window_causal": True, "position_weights": {"name": "exponential", "gamma": 4.0}},
    {"sliding_window": 1, "layers": 1, "hidden_state_layers": [4]},
    {"sliding_window_causal": True, "layers": 1, "position_weights": {"name": "dpace", "alpha": 0.0}},
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=F64)


def make(changes: dict[str, Any], dtype: torch.dtype = F64) -> tuple[Any, PlainBlock]:
    """A random draft and its twin."""
    draft = DFLASH | changes
    weights = {
        spec.name: random(*spec.shape, seed=index) * (0.1 if len(spec.shape) > 1 else 0.3) + (len(spec.shape) == 1)
        for index, spec in enumerate(trained(draft, VERIFIER))
    }
    embed, head = random(VOCABULARY, HIDDEN, seed=90), random(SMALL, HIDDEN, seed=91)
    ends = Frozen(embed.to(dtype), torch.ones(HIDDEN), 1e-5, Head(head.to(dtype)), embed)
    model: Any = build(draft, VERIFIER, weights, ends, D2T)
    if dtype == F64:
        model.rotary.frequencies = 10000.0 ** -(torch.arange(8, dtype=F64) / 8)
    return model, PlainBlock(weights, draft, VERIFIER, embed, head)


def document(length: int, seed: int, aux: int = 3) -> Reading:
    ids = torch.randint(VOCABULARY, (length,), generator=stream(seed))
    return Reading(ids, random(length, aux, HIDDEN, seed=seed), random(length, HIDDEN, seed=seed + 1))


def masked(length: int, *written: tuple[int, int]) -> Tensor:
    """Return the loss mask of a document whose places `(first, end)` the assistant wrote."""
    mask = torch.zeros(length, dtype=torch.bool)
    for first, end in written:
        mask[first:end] = True
    return mask


def drawn(seen: Tensor) -> str:
    return " ".join("".join("x" if one else "." for one in row) for row in seen.tolist())


def batch(model: Any, documents: list[Reading], masks: list[Tensor]) -> Any:
    """Choose and pack; the last states are taken for normed ones."""
    return model.pack(documents, model.choose(masks, stream(0)), lambda states: states.to(model.embed_tokens.dtype))


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


def place_weights(kind: dict[str, Any], chances: Tensor) -> Tensor:
    """What the losses of a block's counted tokens count for, given the softened chances of them."""
    if kind["name"] == "dpace":
        return plain_dflash.dpace(chances)
    numbers = torch.arange(len(chances), dtype=F64)
    return torch.exp(-numbers / kind["gamma"]) if kind["name"] == "exponential" else torch.ones_like(numbers)


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
    total, weights, kind = torch.zeros((), dtype=F64), 0.0, plain.draft["position_weights"]
    for reading, mask in zip(documents, masks, strict=True):
        for place in range(1, len(reading) - 1):
            last = place
            while last + 1 < len(reading) and mask[place : last + 2].all():
                last += 1  # to the end of the anchor's own response
            states = plain.block(int(reading.ids[place]), place, reading.aux, model.slots)[1 - model.ahead :]
            here, chances = [], []
            for number in range(min(last - place, len(states))):
                log_p = (plain.head @ reading.last[place + number]).log_softmax(0)
                log_q = (plain.head @ states[number]).log_softmax(0)
                ce = -log_q[log_p.argmax()]
                here.append(0.5 * (log_p.exp() * (log_p - log_q)).sum() + ce)
                chances.append((1 - kind.get("alpha", 0)) * torch.exp(-ce) + kind.get("alpha", 0))
            if not here:
                continue
            count = place_weights(kind, torch.stack(chances))
            total, weights = total + (torch.stack(here) * count).sum(), weights + float(count.sum())
    expected = total / weights
    assert torch.allclose(loss, expected, atol=1e-10)
    expected.backward()
    for name, parameter in model.named_parameters():
        theirs = plain.w[name].grad
        assert torch.allclose(parameter.grad, torch.zeros_like(parameter) if theirs is None else theirs, atol=1e-9), (
            name
        )
        assert parameter.grad.any() or plain.draft["sliding_window"] == 1, "a window of one sees nothing else"


def test_other_orders_and_roundings_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make({})
    documents = [document(20, 1), document(31, 2), document(13, 3)]
    masks = [masked(20, (4, 20)), masked(31, (3, 10), (20, 31)), masked(13, (6, 13))]
    losses = {"ce": 1.0}

    def loss(order: list[int]) -> Tensor:
        content = batch(model, [documents[one] for one in order], [masks[one] for one in order])
        return model(Batch(content), losses)

    before = loss([0, 1, 2])
    assert torch.allclose(loss([2, 0, 1]), before, atol=1e-12)
    for module, name in ((block, "TOGETHER"), (rows, "EVEN")):
        monkeypatch.setattr(module, name, 1)
    assert torch.allclose(loss([0, 1, 2]), before, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_future_and_another_document_change_nothing(dtype: torch.dtype) -> None:
    model, _ = make({}, dtype)
    documents = [document(20, 1), document(31, 2), document(13, 3)]
    masks = [masked(20, (4, 20)), masked(31, (9, 31)), masked(13, (3, 13))]
    blocks, _ = batch(model, documents, masks)
    before = model.states(blocks)
    # The middle document after position 15: its blocks from 16 on read other states.
    documents[1].aux[15:] = random(16, 3, HIDDEN, seed=8)
    documents[1].ids[16:] = 7
    others, _ = batch(model, documents, masks)
    after = model.states(others)
    owner = torch.zeros(len(blocks.places), dtype=torch.bool)
    owner[slice(*blocks.spans[1].blocks)] = True
    later = owner & (blocks.places > 15)
    assert torch.equal(before[~later], after[~later])
    assert later.any()
    assert (before[later] != after[later]).flatten(1).any(1).all()


@pytest.mark.parametrize("changes", VARIANTS[:3])
def test_guesses_follow_the_logits_of_a_plain_draft(changes: dict[str, Any]) -> None:
    model, plain = make(changes)
    reading = document(9, seed=7)
    for steps in (algorithm("dflash").drafted(plain.draft)[0], 2):
        guesses = model.guesses(reading, steps)
        assert guesses.shape == (9, steps)
        for place in range(1, 9):
            states = plain.block(int(reading.ids[place]), place, reading.aux, steps + 1 - model.ahead)
            start = Reading(reading.ids[: place + 1], reading.aux[: place + 1], reading.last[: place + 1])
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
    job = world.job(precision, draft=draft, train=train)
    events = finish(job)
    assert isinstance(events[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    metrics = json.loads(Path(job.parent / "output/metrics.json").read_text())
    for step in metrics["initial"]["positions"]:
        assert step["right"] < 0.1 * step["counted"]  # chance is 1 of 48
    best = metrics["epochs"][metrics["best_epoch"] - 1]
    assert len(best["positions"]) == 3
    for step in best["positions"]:
        assert step["right_so_far"] > 0.9 * step["counted"]
    assert best["simulated"]["mean_acceptance_length"] > 3.5
    assert best["validation_loss"] < 0.5 < metrics["initial"]["validation_loss"]
