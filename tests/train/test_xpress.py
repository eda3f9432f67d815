"""xPress, packed against plain: the mixing, passes, a training step, drafts; and a whole stage that learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")


from specc.train.models import Batch, Reading, initial, trained  # noqa: E402
from specc.train.models.xpress import mixed  # noqa: E402
from train import blocks  # noqa: E402
from train.blocks import F64, SECTIONS, batch, document, make, masked, random, until  # noqa: E402
from train.plain_xpress import PlainXPress  # noqa: E402
from train.world import HIDDEN, VERIFIER, VOCABULARY, World, assert_learnt, environment, measured, stream  # noqa: E402

pytestmark = pytest.mark.engine

XPRESS = SECTIONS["xpress"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"sample_from_anchor": True, "vocabulary": VOCABULARY, "position_weights": {"name": "dpace", "alpha": 0.5}},
    {"block_size": 6, "layers": 1, "sliding_window": 3, "position_weights": {"name": "uniform"},
     "refiner": XPRESS["refiner"] | {"passes": 1, "rounds": 1, "mlp_ratio": 1}},
    {"layers": 1, "refiner": XPRESS["refiner"] | {"rounds": 0, "base_weight": 0.0}},
]  # fmt: skip
LOSSES = {"ce": 0.1, "tv": 0.9}


def twins(changes: dict[str, Any]) -> tuple[Any, PlainXPress]:
    """A random draft and its twin."""
    draft = XPRESS | changes
    model, weights, embed, head = make(draft)
    return model, PlainXPress(weights, draft, VERIFIER, embed, head)


def known(model: Any, reading: Reading, place: int) -> list[int]:
    """The tokens before what a block's first slots propose."""
    return reading.ids[place - 1 + model.ahead : place + 1].tolist()


def scale(model: Any) -> int:
    """What a draft token is multiplied with for the verifier's."""
    return 1 if model.d2t is None else 2


def test_slots_are_mixed_as_drawn() -> None:
    x = torch.eye(4, dtype=F64)[None]  # each slot is a channel of its own
    found = mixed(x, torch.ones(4, 6, 6, dtype=F64))[0]
    assert " ".join("".join("x" if one else "." for one in row) for row in found.tolist()) == "x... xx.. xxx. xxxx"
    x, mix = random(2, 4, 3), random(3, 4, 4)
    whole = torch.stack([sum(mix[:, slot, back] * x[:, back] for back in range(slot + 1)) for slot in range(4)], 1)
    assert torch.allclose(mixed(x, mix), whole)


@pytest.mark.parametrize("changes", VARIANTS)
def test_training_step_equals_plain_torch(changes: dict[str, Any]) -> None:
    model, plain = twins(changes)
    documents = [document(8, 20), document(9, 30), document(5, 40)]
    masks = [masked(8, (3, 8)), masked(9, (2, 4), (5, 9)), masked(5, (0, 5))]
    loss = model(Batch(batch(model, documents, masks)), LOSSES)
    loss.backward()

    for name in plain.w:
        plain.w[name].requires_grad_()
    draft, options = plain.draft, plain.draft["refiner"]
    tokens = draft["block_size"] - 1 + model.ahead
    sums, totals, wrong = [torch.zeros((), dtype=F64) for _ in range(3)], [0.0] * 3, 0
    for reading, place, count in blocks.counted(documents, masks, tokens):
        states = plain.block(int(reading.ids[place]), place, reading.aux, draft["block_size"])
        start = known(model, reading, place)
        after = [[*start, *reading.ids[place + 1 :].tolist()]]
        for drafted in plain.drafts(states, start, tokens, options["rounds"] - 1, scale(model))[: options["rounds"]]:
            after.append([*start, *drafted])
            wrong += drafted[: count - 1] != reading.ids[place + 1 : place + count].tolist()
        logits = [[plain.refine(states, before[: len(start) + number]) for number in range(count)] for before in after]
        base = [plain.head @ state for state in states[1 - model.ahead :][:count]]
        for passed, ours in enumerate([*logits, base]):
            found = [blocks.compare(plain.head @ reading.last[place + n], one) for n, one in enumerate(ours)]
            values = torch.stack([sum(weight * one[name] for name, weight in LOSSES.items()) for one in found])
            weights = blocks.place_weights(draft["position_weights"], [one["ce"] for one in found])
            term = 0 if passed == 0 else 2 if passed == len(logits) else 1
            sums[term] = sums[term] + (values * weights).sum()
            totals[term] += float(weights.sum())
    coefficients = (1.0, options["own_weight"], options["base_weight"])
    expected = sum(one * total / count for one, total, count in zip(coefficients, sums, totals, strict=True) if count)
    assert (wrong > 0) == (options["rounds"] > 0)
    assert torch.allclose(loss, expected, atol=1e-10)
    expected.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain.w[name].grad, atol=1e-9), name
        assert parameter.grad.any(), name


def test_a_token_that_is_proposed_later_changes_nothing_before_it() -> None:
    model, _ = twins({})
    shared, before = model.refiner_head.read(random(3, 4, HIDDEN)), torch.randint(96, (3, 4), generator=stream(1))
    changed = before.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 96
    one, two = model.refiner_head(shared, before), model.refiner_head(shared, changed)
    assert torch.equal(one[:, :2], two[:, :2])
    assert (one[:, 2:] != two[:, 2:]).flatten(1).any(1).all()
    assert torch.allclose(one[:, :3], model.refiner_head(shared, before[:, :3]), atol=1e-12)


@pytest.mark.parametrize("changes", VARIANTS)
def test_drafts_are_those_of_the_passes(changes: dict[str, Any]) -> None:
    model, plain = twins(changes)
    reading, refined = document(9, seed=7), 0
    for steps in (plain.draft["block_size"] - 1 + model.ahead, 2):
        guesses = model.guesses(reading, steps)
        assert guesses.shape == (9, steps)
        for place in range(1, 9):
            states = plain.block(int(reading.ids[place]), place, reading.aux, steps + 1 - model.ahead)
            start = known(model, reading, place)
            drafts = plain.drafts(states, start, steps, model.passes, scale(model))
            assert model.draft(until(reading, place), steps).tolist() == drafts[-1]
            within = [place + number < 9 for number in range(steps)]
            expected = [token if inside else -1 for token, inside in zip(drafts[-1], within, strict=True)]
            assert guesses[place - 1].tolist() == expected
            refined += drafts[-1] != drafts[0]
    assert refined > 0
    assert model.guesses(Reading(reading.ids[:1], reading.aux[:1], reading.last[:1]), 2).tolist() == [[-1, -1]]


@pytest.mark.parametrize("changes", VARIANTS)
def test_passes_end_at_the_draft_that_follows_the_logits(changes: dict[str, Any]) -> None:
    model, plain = twins(changes)
    reading, differing = document(9, seed=7), 0
    steps = plain.draft["block_size"] - 1 + model.ahead
    for place in range(1, 9):
        states = plain.block(int(reading.ids[place]), place, reading.aux, plain.draft["block_size"])
        drafted, start = reading.ids[:0], known(model, reading, place)
        for _ in range(steps):
            logits = model.logits(until(reading, place), drafted)
            assert torch.allclose(logits, plain.refine(states, [*start, *drafted.tolist()]), atol=1e-9)
            drafted = torch.cat((drafted, scale(model) * logits.argmax()[None]))
        own = model.draft(until(reading, place), steps)
        assert torch.equal(own[: model.passes], drafted[: model.passes]), "so many tokens are as one after another"
        differing += int(not torch.equal(own, drafted))
        model.passes, passes = steps, model.passes
        assert torch.equal(model.draft(until(reading, place), steps), drafted)
        model.passes = passes
    assert (differing > 0) == (model.passes < steps)


def test_slots_are_not_mixed_at_first() -> None:
    specs = {spec.name: spec for spec in trained(XPRESS, VERIFIER)}
    assert not initial(XPRESS, VERIFIER, specs["refiner_head.mix_l"], stream(0)).any()
    assert initial(XPRESS, VERIFIER, specs["refiner_head.readout.weight"], stream(0)).any()


FRESH = """
import sys, torch
from safetensors.torch import load_file
sys.path[:0] = sys.argv[2:]
from specc.train.models import Frozen, build
from specc.train.losses import Head
from train.blocks import document
from train.test_xpress import XPRESS
from train.world import VERIFIER
tensors = load_file(sys.argv[1])
embed, head = tensors.pop("embed"), tensors.pop("head")
ends = Frozen(embed, torch.ones(64), 1e-5, Head(head), embed)
model = build(XPRESS, VERIFIER, tensors, ends, torch.arange(len(head)))
reading = document(9, seed=7)
print(model.logits(reading, torch.tensor([3, 4])).sum().item().hex(), model.guesses(reading, 3).tolist())
"""


def test_a_fresh_process_gives_the_same_numbers(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, *_ = make(XPRESS, torch.float32)
    tensors = {name: one.detach().clone() for name, one in model.state_dict().items()}
    assert not list(model.buffers()), "nothing that a checkpoint lacks"
    save_file(tensors | {"embed": model.embed_tokens, "head": model.head.weight}, tmp_path / "m.safetensors")
    reading = document(9, seed=7)
    here = f"{model.logits(reading, torch.tensor([3, 4])).sum().item().hex()} {model.guesses(reading, 3).tolist()}"
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "m.safetensors"), tests],
        env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == here, done.stderr[-2000:]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=160, validation=8)


@pytest.mark.parametrize(
    ("changes", "precision", "epochs"), [({}, "fp32", 4), ({"sample_from_anchor": True, "block_size": 3}, "bf16", 8)]
)
def test_a_stage_learns_to_draft(changes: dict[str, Any], precision: str, epochs: int, world: World) -> None:
    train = {"precision": precision, "epochs": epochs, "loss": LOSSES}
    job = world.job(precision, draft=XPRESS | {"anchors": 64} | changes, train=train)
    assert_learnt(measured(job), 3, chance=0.1)
