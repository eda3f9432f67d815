"""DFlash2, packed against plain: convolutions, selector, a training step, drafts; and a whole stage that learns."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")


from specc.core.errors import SpeccError  # noqa: E402
from specc.train.models import Batch, Reading, build, initial, trained  # noqa: E402
from specc.train.models.block import blocks_at  # noqa: E402
from specc.train.models.dflash2 import CandidateLogits, convolve  # noqa: E402
from train import blocks  # noqa: E402
from train.blocks import F64, SECTIONS, batch, document, make, masked, random, until  # noqa: E402
from train.plain_dflash2 import PlainDFlash2  # noqa: E402
from train.world import VERIFIER, VOCABULARY, World, assert_learnt, measured, stream  # noqa: E402

pytestmark = pytest.mark.engine

DFLASH2 = SECTIONS["dflash2"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"convolution": {"kernel": 3, "group": 4}, "sliding_window": 3, "block_size": 5,
     "position_weights": {"name": "dpace", "alpha": 0.5}},
    {"convolution": {"kernel": 1, "group": 64}, "layers": 1, "selector": {"rank": 3, "candidates": 96, "weight": 0.5},
     "position_weights": {"name": "uniform"}},
]  # fmt: skip
LOSSES = {"kl": 1.0, "tv": 0.5}
DOCUMENTS = [document(20, 1), document(31, 2), document(13, 3)]
MASKS = [masked(20, (4, 20)), masked(31, (3, 10), (20, 31)), masked(13, (6, 13))]


def twins(changes: dict[str, Any]) -> tuple[Any, PlainDFlash2]:
    """A random draft and its twin."""
    draft = DFLASH2 | changes
    model, weights, embed, head = make(draft)
    return model, PlainDFlash2(weights, draft, VERIFIER, embed, head)


def test_a_convolution_reads_as_drawn() -> None:
    x = torch.eye(6, dtype=F64).view(2, 3, 6)  # each slot of both blocks is a channel of its own
    base = torch.tensor([[1.0], [2.0]], dtype=F64).expand(2, 6)  # 1 for the slot itself, 2 for the one before
    found = convolve(x, base, torch.zeros(2, 3, 2, 1, dtype=F64)).view(6, 6)
    drawn = "0..... 10.... .10... ...0.. ...10. ....10"
    shown = "".join(".01"[int(one)] for one in found.flatten().tolist())
    assert " ".join(shown[at : at + 6] for at in range(0, 36, 6)) == drawn
    delta = random(2, 3, 2, 3)
    whole = sum(
        delta[..., tap, :].repeat_interleave(2, -1) * (x if tap == 0 else torch.cat((0 * x[:, :1], x[:, :-1]), 1))
        for tap in range(2)
    )
    assert torch.allclose(convolve(x, base * 0, delta), whole), "a group's channels share what the token adds"


def test_logits_of_candidates_are_differentiable() -> None:
    states, head = random(5, 4).requires_grad_(), random(9, 4, seed=1)
    tokens = torch.randint(9, (5, 3), generator=stream(2))
    found = CandidateLogits.apply(states, head, tokens)
    assert torch.allclose(found, (states @ head.t()).gather(1, tokens))
    assert torch.autograd.gradcheck(lambda one: CandidateLogits.apply(one, head, tokens), (states,))


@pytest.mark.parametrize("changes", VARIANTS)
def test_states_equal_serving_one_block_at_a_time(changes: dict[str, Any]) -> None:
    model, plain = twins(changes)
    reading, places = document(9, seed=5), torch.arange(1, 9)
    for slots in (model.slots, 2):
        states = model.states(blocks_at(reading, places, slots, F64))
        for place in places.tolist():
            expected = plain.block(int(reading.ids[place]), place, reading.aux, slots)
            assert torch.allclose(states[place - 1], expected, atol=1e-9), place


@pytest.mark.parametrize("changes", VARIANTS)
def test_training_step_equals_plain_torch(changes: dict[str, Any]) -> None:
    model, plain = twins(changes)
    documents = [document(8, 20), document(9, 30), document(5, 40)]
    masks = [masked(8, (3, 8)), masked(9, (2, 4), (5, 9)), masked(5, (0, 5))]
    loss = model(Batch(batch(model, documents, masks)), LOSSES)
    loss.backward()

    for name in plain.w:
        plain.w[name].requires_grad_()
    sums, totals, missed = [torch.zeros((), dtype=F64) for _ in range(2)], [0.0, 0.0], 0
    for reading, place, count in blocks.counted(documents, masks, plain.draft["block_size"] - 1):
        states = plain.block(int(reading.ids[place]), place, reading.aux, plain.draft["block_size"])[1:]
        own, chosen, ces = [], [], []
        for number, state in zip(range(count), states, strict=False):
            theirs = plain.head @ reading.last[place + number]
            found = blocks.compare(theirs, plain.head @ state)
            own.append(sum(weight * found[name] for name, weight in LOSSES.items()))
            ces.append(found["ce"])
            candidates, wanted = plain.candidates(state), int(theirs.argmax())
            if wanted not in candidates:
                candidates[-1], missed = wanted, missed + 1
            scores = torch.stack([plain.score(state, int(reading.ids[place + number]), one) for one in candidates])
            chosen.append(-scores.log_softmax(0)[candidates.index(wanted)])
        for term, (values, follow) in enumerate(((own, ces), (chosen, chosen))):
            weights = blocks.place_weights(plain.draft["position_weights"], follow)
            sums[term] = sums[term] + (torch.stack(values) * weights).sum()
            totals[term] += float(weights.sum())
    expected = sums[0] / totals[0] + plain.draft["selector"]["weight"] * sums[1] / totals[1]
    assert (missed > 0) == (plain.draft["selector"]["candidates"] < VOCABULARY)
    assert torch.allclose(loss, expected, atol=1e-10)
    expected.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain.w[name].grad, atol=1e-9), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("changes", VARIANTS)
def test_drafts_follow_the_logits_of_a_plain_draft(changes: dict[str, Any]) -> None:
    model, plain = twins(changes)
    reading = document(9, seed=7)
    reranked = 0
    for steps in (plain.draft["block_size"] - 1, 2):
        guesses = model.guesses(reading, steps)
        assert guesses.shape == (9, steps)
        for place in range(1, 9):
            states = plain.block(int(reading.ids[place]), place, reading.aux, steps + 1)
            drafted = reading.ids[place : place + 1]
            for number in range(steps):
                logits = model.logits(until(reading, place), drafted[1:], steps)
                expected = plain.logits(states[number + 1], int(drafted[-1]))
                assert torch.equal(logits.isinf(), expected.isinf())
                assert torch.allclose(logits, expected, atol=1e-9)
                drafted = torch.cat((drafted, logits.argmax()[None]))
                reranked += int(drafted[-1]) != int((plain.head @ states[number + 1]).argmax())
                assert int(guesses[place - 1, number]) == (int(drafted[-1]) if place + number < 9 else -1)
    assert reranked > 0
    short = Reading(reading.ids[:1], reading.aux[:1], reading.last[:1])
    assert model.guesses(short, 2).tolist() == [[-1, -1]]


def test_it_starts_as_the_dflash_that_has_its_weights() -> None:
    draft = DFLASH2 | {"convolution": {"kernel": 2, "group": 8}}
    model, weights, _, _ = make(draft, torch.float32)
    first = {spec.name: initial(draft, VERIFIER, spec, stream(0)) for spec in trained(draft, VERIFIER)}
    weights = {name: first[name] if "_conv." in name else one.float() for name, one in weights.items()}
    model.load_state_dict(weights)
    plain = DFLASH2 | {"algorithm": "dflash"}
    frozen = type("Frozen", (), {"embed_tokens": model.embed_tokens, "head": model.head})()
    known = {spec.name for spec in trained(plain, VERIFIER)}
    other = build(plain, VERIFIER, {name: one for name, one in weights.items() if name in known}, frozen, None)
    packed, _ = batch(model, DOCUMENTS, MASKS)
    assert torch.equal(model.states(packed), other.states(packed))


def test_a_group_that_does_not_divide_the_hidden_size_is_refused() -> None:
    with pytest.raises(SpeccError, match="does not divide the verifier's hidden size, 64") as caught:
        trained(DFLASH2 | {"convolution": {"kernel": 2, "group": 24}}, VERIFIER)
    assert caught.value.hint == "use 16"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=160, validation=8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stage_learns_to_draft(precision: str, world: World) -> None:
    train = {"precision": precision, "epochs": 4, "loss": {"kl": 1.0}}
    assert_learnt(measured(world.job(precision, draft=DFLASH2 | {"anchors": 64}, train=train)), 3)
