"""DSpark: the module and its step against one draft at a time, and the whole stage on a made-up verifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from specc.core.algorithms import algorithm  # noqa: E402
from specc.train.models import Batch, Reading, accepted_lengths  # noqa: E402
from specc.train.models.dspark import DSpark, before  # noqa: E402
from train import blocks  # noqa: E402
from train.blocks import SECTIONS, batch, counted, document, masked, until  # noqa: E402
from train.plain_dspark import PlainDSpark  # noqa: E402
from train.world import (  # noqa: E402
    HIDDEN,
    MUON,
    SMALL,
    VERIFIER,
    World,
    assert_learnt,
    digest,
    finish,
    kill_after,
    measured,
    stream,
)

pytestmark = pytest.mark.engine
F64 = torch.float64
LOSSES = {"kl": 1.0, "ce": 0.5, "tv": 0.25}

DSPARK = SECTIONS["dspark"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"sample_from_anchor": False, "sliding_window": 3, "markov": {"type": "gated", "rank": 8}},
    {"markov": {"type": "rnn", "rank": 8}, "confidence": {"with_markov": False, "weight": 0.5},
     "position_weights": {"name": "dpace", "alpha": 0.5}},
    {"sample_from_anchor": False, "sliding_window": 5, "sliding_window_causal": True,
     "markov": {"type": "rnn", "rank": 8}, "position_weights": {"name": "uniform"}},
    {"confidence": None, "markov": {"type": "gated", "rank": 8}, "position_weights": {"name": "dpace", "alpha": 0.3}},
]  # fmt: skip


def make(variant: dict[str, Any], dtype: torch.dtype = F64) -> tuple[DSpark, PlainDSpark]:
    """A random draft and its twin."""
    draft = DSPARK | variant
    model, weights, embed, head = blocks.make(draft, dtype)
    return model, PlainDSpark(weights, draft, VERIFIER, embed, head)


def proposed(plain: PlainDSpark) -> int:
    """How many tokens a block proposes."""
    return algorithm("dspark").drafted(plain.draft)[0]


def some() -> tuple[list[Reading], list[Tensor]]:
    """Documents and their loss masks: one has two responses, one is the assistant's from its first token on."""
    return [document(8, 20), document(9, 30), document(5, 40)], [
        masked(8, (3, 8)), masked(9, (2, 5), (6, 9)), masked(5, (0, 5)),
    ]  # fmt: skip


def test_the_token_before_as_drawn() -> None:
    anchors = torch.tensor([3])
    assert before(anchors, torch.tensor([[3, 4, 5, 6]])).tolist() == [[3, 4, 5]]
    assert before(anchors, torch.tensor([[2, 3, 4, 5]])).tolist() == [[3, 3, 4]], "slot 0 proposes nothing"


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_draft_equal_serving_one_token_at_a_time(variant: dict[str, Any]) -> None:
    model, plain = make(variant)
    reading, drafted = document(7, seed=5), torch.tensor([8, 3, 90, 41])
    for steps in (proposed(plain), 2):
        states = plain.block(int(reading.ids[6]), 6, reading.aux, steps + 1 - model.ahead)
        for count in range(steps):
            found = model.logits(reading, drafted[:count], steps)
            expected = plain.logits(states, [int(reading.ids[6]), *drafted[:count].tolist()])
            assert torch.allclose(found, expected, atol=1e-9), (steps, count)


def plain_rows(plain: PlainDSpark) -> list[dict[str, Tensor]]:
    """What `some` documents count, token by token: the losses, the weight, the overlap and the confidence."""
    rows: list[dict[str, Tensor]] = []
    for reading, place, count in counted(*some(), proposed(plain)):
        states = plain.block(int(reading.ids[place]), place, reading.aux, plain.draft["block_size"])
        found = plain.slots(states, reading.ids[place : place + count].tolist())[-count:]
        here: list[dict[str, Tensor]] = []
        for number, (logits, confidence) in enumerate(found):
            one = blocks.compare(plain.head @ reading.last[place + number], logits)
            row = {"loss": one["kl"] + 0.5 * one["ce"] + 0.25 * one["tv"], "ce": one["ce"], "overlap": 1 - one["tv"]}
            if confidence is not None:
                rate = row["overlap"].detach()
                row["bce"] = -rate * F.logsigmoid(confidence) - (1 - rate) * F.logsigmoid(-confidence)
                row["confidence"] = torch.sigmoid(confidence)
            here.append(row)
        weights = blocks.place_weights(plain.draft["position_weights"], [row["ce"] for row in here])
        rows += [row | {"weight": weight.detach()} for row, weight in zip(here, weights, strict=True)]
    return rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step_equals_plain_torch(variant: dict[str, Any]) -> None:
    model, plain = make(variant)
    content = batch(model, *some())
    loss = model(Batch(content), LOSSES)
    loss.backward()

    for name in plain.w:
        plain.w[name].requires_grad_()
    rows, confidence = plain_rows(plain), plain.draft["confidence"]
    assert len(rows) == int(content[1].counted.sum()) == {4: 22, 3: 21}[proposed(plain)]
    total = sum(float(row["weight"]) for row in rows)
    expected = sum(row["weight"] * row["loss"] for row in rows) / total
    if confidence:
        expected = expected + confidence["weight"] * sum(row["weight"] * row["bce"] for row in rows) / total
    assert torch.allclose(loss, expected, atol=1e-9)
    expected.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain.w[name].grad, atol=1e-9), name
        assert parameter.grad.any(), name


def test_the_measured_confidence_and_rate_are_the_plain_ones() -> None:
    model, plain = make({})
    content, rows = batch(model, *some()), plain_rows(plain)
    with torch.inference_mode():
        sums, totals, measures = model.measured(content, LOSSES)
        terms = model.terms(content, LOSSES)
        found = model.worth(content, LOSSES)
    assert torch.equal(sums, terms[0])
    assert torch.equal(totals, terms[1])
    rates, confidences = (torch.stack([row[name] for row in rows]) for name in ("overlap", "confidence"))
    assert torch.allclose(found.overlap[: len(rows)], rates, atol=1e-9)
    assert torch.allclose(torch.sigmoid(found.confidence[: len(rows)]), confidences, atol=1e-9)
    told = model.summary(measures)["confidence"]
    assert sum(count for count, _, _ in told["bins"]) == len(rows)
    assert told["mean_accept_rate"] == pytest.approx(float(rates.mean()))
    assert told["mean_confidence"] == pytest.approx(float(confidences.mean()))
    assert model.summary({})["confidence"]["error"] is None, "without validation rows"
    assert make({"confidence": None})[0].summary({}) == {}


def test_nothing_is_learnt_through_the_chance_of_acceptance() -> None:
    model, _ = make({})
    found = model.worth(batch(model, *some()), LOSSES)
    found.sums[1].backward()
    assert model.confidence_head is not None
    assert model.confidence_head.proj.weight.grad.any()
    assert model.markov_head.markov_w1.weight.grad.any(), "the confidence reads the embedding"
    readout = model.markov_head.markov_w2.weight.grad
    assert readout is None or not readout.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_guesses_follow_the_logits_of_a_plain_draft(variant: dict[str, Any]) -> None:
    model, plain = make(variant)
    reading = document(8, 7)
    for steps in (proposed(plain), 2):
        guesses = model.guesses(reading, steps)
        for place in range(1, len(reading)):
            states = plain.block(int(reading.ids[place]), place, reading.aux, steps + 1 - model.ahead)
            known = [int(reading.ids[place])]
            for number in range(steps):
                choice = 2 * int(plain.logits(states, known).argmax())
                found = model.logits(until(reading, place), torch.tensor(known[1:], dtype=torch.int64), steps)
                assert choice == 2 * int(found.argmax())
                known.append(choice)
                assert int(guesses[place - 1, number]) == (choice if place + number < len(reading) else -1)
        assert guesses[-1].tolist() == [-1] * steps


def test_acceptance_follows_a_document_that_goes_on_as_drafted() -> None:
    model, plain = make({"sliding_window": 4})
    aux, tokens = blocks.random(14, 3, HIDDEN, seed=7), [3, 5]
    while len(tokens) < 14:
        states, known = plain.block(tokens[-1], len(tokens) - 1, aux, 4), [tokens[-1]]
        for _ in range(3):
            known.append(2 * int(plain.logits(states, known).argmax()))
        tokens += [*known[1:3], (known[3] + 2) % (2 * SMALL)]  # the third one is another token
    ids = torch.tensor(tokens[:14])
    accepted = accepted_lengths(model.guesses(Reading(ids, aux, aux[:, 0]), 4), ids)
    assert accepted[:10:3].tolist() == [2, 2, 2, 2]


class Doubtful(World):
    """A world in which half of the tokens leave it open, at random, whether a token is left out after them."""

    def _verifier(self, embed: Tensor, norm: Tensor) -> None:
        self.embed, self.norm = embed, norm
        super()._verifier(embed, norm)

    def _shards(self, tokens: Tensor, masks: list[int], offsets: list[int], split: list[int], hidden: Tensor) -> None:
        doubt = (tokens % 2 == 1) & (torch.rand(len(tokens), generator=stream(9)) < 0.5)
        after = self.embed[tokens.roll(-2)] / self.norm
        hidden[:, -1] += 0.98 * doubt[:, None] * after
        super()._shards(tokens, masks, offsets, split, hidden)


def run(world: World, name: str, draft: dict[str, Any], **train: Any) -> dict[str, Any]:
    """Run the stage and return its metrics; a rank as large as the draft vocabulary can learn what follows what."""
    changes = {"layers": 1, "markov": {"type": "vanilla", "rank": 64}} | draft
    return measured(world.job(name, draft=DSPARK | changes, train=train))


@pytest.mark.parametrize(
    ("draft", "train"),
    [
        ({}, {}),
        ({"markov": {"type": "rnn", "rank": 16}, "sample_from_anchor": False, "block_size": 5},
         {"precision": "bf16", "zero": {"stage": 3}}),
    ],
)  # fmt: skip
def test_a_stage_learns_to_draft(draft: dict[str, Any], train: dict[str, Any], tmp_path: Path) -> None:
    world = World(tmp_path / "w", rows=160, validation=8)
    metrics = run(world, "learns", draft, epochs=8, **train)
    best = assert_learnt(metrics, 4)
    assert best["validation_loss"] < 1 < metrics["initial"]["validation_loss"]


def test_muon_takes_directions_of_its_matrices_and_leaves_embeddings_and_heads(tmp_path: Path) -> None:
    """Also under ZeRO stage 3, and after a restart: what is saved tells the parameters that have a momentum."""
    world = World(tmp_path / "w", rows=40, validation=8)
    train = {"optimizer": MUON, "epochs": None, "steps": 6, "zero": {"stage": 3}}
    whole, killed = (world.job(name, draft=DSPARK, train=train, save_every=2) for name in ("whole", "killed"))
    metrics = measured(whole)
    assert metrics["epochs"][0]["validation_loss"] < metrics["initial"]["validation_loss"]
    kill_after(killed, 3)
    finish(killed)
    assert digest(killed) == digest(whole)


def test_a_stage_learns_what_to_expect_of_its_drafts(tmp_path: Path) -> None:
    world = Doubtful(tmp_path / "w", rows=160, validation=16)
    metrics = run(world, "expects", {}, epochs=6)
    start, end = metrics["initial"]["confidence"], metrics["epochs"][-1]["confidence"]
    assert start["error"] > 0.3
    assert end["error"] < 0.1
    assert end["mean_confidence"] == pytest.approx(end["mean_accept_rate"], abs=0.1)
    # Some tokens are likelier to be accepted than others, and the head tells them apart.
    rates = [rate for count, _, rate in end["bins"] if count >= 20]
    assert max(rates) - min(rates) > 0.15
