"""P-EAGLE packed and sampled against plain: its mask, the module, a training step, proposals, the whole stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from specc.train.losses import Head  # noqa: E402
from specc.train.models import Batch, Frozen, Reading, accepted_lengths, build, initial, trained  # noqa: E402
from specc.train.models import rows as packing  # noqa: E402
from specc.train.models.peagle import Content, Masks, Peagle, mask_rows, shares  # noqa: E402
from specc.train.models.rows import depths  # noqa: E402
from train.plain import Plain  # noqa: E402
from train.world import DRAFT, HIDDEN, MUON, SMALL, VERIFIER, VOCABULARY, World, assert_learnt, measured, stream  # noqa: E402

pytestmark = pytest.mark.engine
F64 = torch.float64
D2T = torch.arange(SMALL)  # draft token i is verifier token 2 i
FULL: dict[str, Any] = {"ratio": 1.0, "floor": 1.0, "anchors": 1000}
PEAGLE: dict[str, Any] = {
    **{key: DRAFT[key] for key in ("layers", "decoder", "vocabulary", "hidden_state_layers", "norm_before_residual",
                                   "norm_before_fc", "sliding_window", "intermediate_size", "init")},
    "algorithm": "peagle", "mask_token": 2, "depths": 4, "sampling": FULL,
}  # fmt: skip

VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": False, "norm_before_fc": False, "sliding_window": 5},
    {"layers": 2, "sliding_window": 2},
    {"decoder": "qwen3", "layers": 2, "hidden_state_layers": [1, 3]},
]


class Twin(Plain):
    """One draft at a time, one position after another, as it is served."""

    def states(self, tokens: list[int], aux: Tensor, steps: int) -> dict[tuple[int, int], Tensor]:
        """Return the state of every (depth, row)."""
        found = {}
        masked = self.fuse(self.w["mask_hidden"].view(-1, HIDDEN))
        for row, (state, _, caches) in enumerate(self.first(tokens, aux)):
            found[0, row] = state
            for depth in range(1, min(steps, len(tokens) - 1 - row)):
                found[depth, row], _ = self.position(self.draft["mask_token"], masked, row + depth, caches)
        return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=F64)


def make(draft: dict[str, Any], dtype: torch.dtype = F64) -> tuple[Peagle, Twin]:
    """A random draft and its twin."""
    weights = {
        spec.name: random(*spec.shape, seed=index) * (0.1 if len(spec.shape) > 1 else 0.3) + (len(spec.shape) == 1)
        for index, spec in enumerate(trained(draft, VERIFIER))
    }
    embed, head = random(VOCABULARY, HIDDEN, seed=90), random(SMALL, HIDDEN, seed=91)
    frozen = Frozen(embed.to(dtype), torch.ones(HIDDEN), 1e-5, Head(head.to(dtype)), embed.to(dtype))
    model: Any = build(draft, VERIFIER, weights, frozen, D2T)
    if dtype == F64:
        model.rotary.frequencies = 10000.0 ** -(torch.arange(8, dtype=F64) / 8)
    return model, Twin(weights, draft | {"fc_norm": False, "norm_output": False}, VERIFIER, embed, head)


def document(length: int, seed: int, aux: int = 3, dtype: torch.dtype = F64) -> Reading:
    tokens = torch.randint(VOCABULARY, (length,), generator=stream(seed))
    states = random(length, aux, HIDDEN, seed=seed).to(dtype)
    return Reading(tokens, states, random(length, HIDDEN, seed=seed + 1).to(dtype))


def mask(length: int, *responses: tuple[int, int]) -> Tensor:
    found = torch.zeros(length, dtype=torch.bool)
    for start, end in responses:
        found[start:end] = True
    return found


def same(states: Tensor) -> Tensor:
    """The verifier's final norm, of no use here."""
    return states


def content(model: Peagle, documents: Sequence[Reading], masks: Sequence[Tensor], seed: int = 0) -> Content:
    return model.pack(documents, model.choose(masks, stream(seed)), same)


def drawn(masks: Masks, rows: int) -> list[str]:
    """What each mask row sees, context first."""
    count = int((masks.depths > 0).sum())
    seen = torch.zeros(count, rows + count, dtype=torch.bool)
    for block in masks.where:
        (a, b), (c, d) = block.queries, block.keys
        seen[a:b, c:d] = block.mask == 0
    for row in range(count):
        seen[row, rows + masks.own.places[row][masks.own.mask[row] == 0]] = True
    return ["".join("x" if y else "." for y in x[:rows]) + " " + "".join("x" if y else "." for y in x[rows:])
            for x in seen.tolist()]  # fmt: skip


def test_masks_as_drawn() -> None:
    places = torch.tensor([1, 2]), torch.tensor([2, 1]), [(0, 4)], 3
    masks = mask_rows(*places, None)
    assert list(zip(masks.anchors.tolist(), masks.depths.tolist(), strict=True))[:4] == [(1, 1), (2, 1), (1, 2), (0, 0)]
    assert len(masks.depths) == packing.EVEN
    assert drawn(masks, 4) == ["xx.. x..", "xxx. .x.", "xx.. x.x"]
    assert drawn(mask_rows(*places, 2), 4) == [".x.. x..", "..x. .x.", ".... x.x"]


def test_shares_are_proportional_and_never_none() -> None:
    assert shares([3, 0, 5], 8) == [3, 0, 5]
    assert shares([100, 0, 1, 300], 41) == [10, 0, 1, 29]
    assert shares([5, 5, 5], 2) == [1, 1, 1]
    for seed in range(20):
        counts = torch.randint(0, 50, (7,), generator=stream(seed)).tolist()
        found = shares(counts, 60)
        assert sum(found) <= 60
        assert all((n > 0) == (count > 0) and n <= count for n, count in zip(found, counts, strict=True))


def test_choice_is_nested_of_one_response_and_of_the_documented_size() -> None:
    masks = [mask(40, (4, 20), (24, 40)), mask(12, (5, 6)), mask(70, (3, 70)), mask(4, (0, 4))]
    model, _ = make(PEAGLE | {"depths": 6, "sampling": {"ratio": 0.6, "floor": 0.3, "anchors": 50}})
    chosen = model.choose(masks, stream(3))
    again = model.choose(masks, stream(3))
    assert all(torch.equal(one, two) for one, two in zip(chosen, again, strict=True))
    assert any((one != two).any() for one, two in zip(chosen, model.choose(masks, stream(4)), strict=True))
    for one, given in zip(chosen, masks, strict=True):
        deep = depths(given)
        assert len(one) == len(given)
        assert ((one >= 0)[:-2] == (deep >= 0)[2:]).all(), "every target is learnt from at depth 0"
        for row, depth in enumerate(one.tolist()):
            if depth >= 0:
                assert given[row + 1 : row + 3 + depth].all(), (row, depth)
                assert row + 2 + depth < len(given)
    kept = [sum(int((one >= depth).sum()) for one in chosen) for depth in range(6)]
    anchors = [15 + 15, 0, 66, 2]  # no first token of a response; and a document's first token starts nothing
    assert kept[0] == sum(anchors)
    count = sum(shares(anchors, 50))
    assert kept[1:] == [int((count - d) * max(0.6**d, 0.3)) for d in range(1, 6)]

    whole, _ = make(PEAGLE)
    for one, given in zip(whole.choose(masks, stream(0)), masks, strict=True):
        deep = [depths(given).tolist()[row:] for row in range(len(given))]
        for row, depth in enumerate(one.tolist()):
            possible = [d for d in range(4) if row + 2 + d < len(given) and deep[row][2 + d] >= d]
            assert depth == max(possible, default=-1), "with ratio and floor 1 nothing is left out"


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_equal_serving_one_position_at_a_time(variant: dict[str, Any]) -> None:
    model, twin = make(PEAGLE | variant)
    reading = document(9, 5, model.fc.in_features // HIDDEN)
    expected = twin.states(reading.ids.tolist(), reading.aux, 4)
    assert len(expected) == 8 + 7 + 6 + 5
    context, rows = model._whole(reading), torch.arange(8)
    states, memories = model.read(context, rows)
    masks = mask_rows(rows, (7 - rows).clamp(max=3), context.documents, 3, model.window)
    deeper = model.fill(masks, context.positions, memories)
    found = {(0, row): states[row] for row in range(8)}
    for place, (row, depth) in enumerate(zip(masks.anchors.tolist(), masks.depths.tolist(), strict=True)):
        if depth:
            found[depth, row] = deeper[place]
    assert found.keys() == expected.keys()
    for where, state in expected.items():
        assert torch.allclose(found[where], state, atol=1e-9), where


@pytest.mark.parametrize("sampling", [FULL, {"ratio": 0.6, "floor": 0.3, "anchors": 9}])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step_equals_plain_torch(variant: dict[str, Any], sampling: dict[str, Any]) -> None:
    model, twin = make(PEAGLE | variant | {"sampling": sampling})
    aux = model.fc.in_features // HIDDEN
    documents = [document(11, 20, aux), document(7, 30, aux), document(8, 40, aux)]
    masks = [mask(11, (2, 5), (7, 11)), mask(7, (5, 7)), mask(8, (0, 8))]
    chosen = model.choose(masks, stream(1))
    loss = model(Batch(model.pack(documents, chosen, same)), {"kl": 1.0, "ce": 0.5})
    loss.backward()

    for name in twin.w:
        twin.w[name].requires_grad_()
    total, count, everything = torch.zeros((), dtype=F64), 0, 0
    for reading, given, deepest in zip(documents, masks, chosen, strict=True):
        for (depth, row), state in twin.states(reading.ids.tolist(), reading.aux, 4).items():
            if row + 2 + depth >= len(reading) or not given[row + 1 : row + 3 + depth].all():
                assert depth > deepest[row]
                continue
            everything += 1
            if depth > deepest[row]:
                continue
            log_p = (twin.head @ reading.last[row + 1 + depth]).log_softmax(0)
            log_q = (twin.head @ state).log_softmax(0)
            total = total + (log_p.exp() * (log_p - log_q)).sum() - 0.5 * log_q[log_p.argmax()]
            count += 1
    assert count < everything or sampling == FULL
    assert count == everything or sampling != FULL
    assert torch.allclose(loss, total / count, atol=1e-10)
    (total / count).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, twin.w[name].grad, atol=1e-9), name
    assert twin.w["mask_hidden"].grad.abs().sum() > 0


def test_the_order_of_documents_and_the_rounding_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make(PEAGLE | {"layers": 2, "sampling": {"ratio": 0.7, "floor": 0.2, "anchors": 30}})
    documents = [document(20, 1), document(31, 2), document(13, 3)]
    masks = [mask(20, (4, 20)), mask(31, (3, 9), (15, 31)), mask(13, (2, 13))]
    chosen = model.choose(masks, stream(0))

    def terms(order: list[int]) -> tuple[Tensor, Tensor]:
        return model.terms(model.pack([documents[i] for i in order], [chosen[i] for i in order], same), {"kl": 1.0})

    sums, totals = terms([0, 1, 2])
    others = [terms([2, 0, 1])]
    monkeypatch.setattr(packing, "EVEN", 1)
    others.append(terms([0, 1, 2]))
    for other_sums, other_totals in others:
        assert torch.allclose(sums, other_sums, atol=1e-10)
        assert torch.equal(totals, other_totals)
    packs = [model.pack([one], [deep], same) for one, deep in zip(documents, chosen, strict=True)]
    assert torch.allclose(sums, sum(model.terms(one, {"kl": 1.0})[0] for one in packs), atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_document_and_a_later_token_change_nothing(dtype: torch.dtype) -> None:
    model, _ = make(PEAGLE | {"layers": 2}, dtype)
    masks = [mask(20, (4, 20)), mask(31, (9, 31)), mask(13, (3, 13))]
    one, two, three, other = (document(n, s, 3, dtype) for n, s in ((20, 1), (31, 2), (13, 3), (31, 4)))
    pairs = (two.ids, other.ids), (two.aux, other.aux), (two.last, other.last)
    later = Reading(*(torch.cat((mine[:20], theirs[20:])) for mine, theirs in pairs))
    chosen = model.choose(masks, stream(0))

    def states(middle: Reading) -> tuple[Tensor, Tensor, Content]:
        found = model.pack([one, middle, three], chosen, same)
        first, memories = model.read(found.context, found.queries)
        deeper = model.fill(found.masks, found.context.positions, memories)
        rows = torch.cat((found.queries, found.masks.anchors))
        return torch.cat((first, deeper)), rows, found

    before, rows, packed = states(two)
    start, end = packed.context.documents[1]
    after, _, _ = states(other)
    outside = (rows < start) | (rows >= end)
    assert torch.equal(before[outside], after[outside])
    assert (before[~outside] != after[~outside]).any()
    after, _, _ = states(later)
    # Row 18 is the last that reads nothing of token 20 on: (g_18, x_19), at whatever depth.
    earlier = outside | (rows < start + 19)
    assert torch.equal(before[earlier], after[earlier])
    assert (before[~earlier] != after[~earlier]).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_proposals_equal_serving_one_position_at_a_time(variant: dict[str, Any]) -> None:
    model, twin = make(PEAGLE | variant)
    reading = document(11, 7, model.fc.in_features // HIDDEN)
    expected = twin.states(reading.ids.tolist(), reading.aux, 4)
    found = model.guesses(reading, 4)
    assert found.shape == (11, 4)
    for row in range(11):
        for depth in range(4):
            state = expected.get((depth, row))
            assert found[row, depth] == (-1 if state is None else 2 * int((twin.head @ state).argmax())), (row, depth)
    for row in range(1, 11):  # a draft from each place, whatever it drafted before
        start = Reading(reading.ids[: row + 1], reading.aux[: row + 1], reading.last[: row + 1])
        for depth in range(4):
            logits = model.logits(start, torch.arange(depth))
            if (depth, row - 1) in expected:
                assert torch.allclose(logits, twin.head @ expected[depth, row - 1], atol=1e-9)
                assert model.to_verifier(logits.argmax()) == found[row - 1, depth]
    short = Reading(reading.ids[:2], reading.aux[:2], reading.last[:2])
    assert accepted_lengths(model.guesses(short, 4), short.ids).tolist() == [0, 0]


def test_drafts_are_proposed_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make(PEAGLE)
    reading = document(23, 7)
    found = model.guesses(reading, 4)
    monkeypatch.setattr("specc.train.models.peagle.ANCHORS", 5)
    assert torch.equal(model.guesses(reading, 4), found)


@pytest.mark.parametrize("changes", [{"depths": 1}, {"sampling": {"ratio": 0.1, "floor": 0.0, "anchors": 1}}])
def test_depths_without_rows_are_no_matter(changes: dict[str, Any]) -> None:
    model, twin = make(PEAGLE | {"sliding_window": 2} | changes)
    reading, given = document(9, 5), mask(9, (6, 9))
    loss = model(Batch(content(model, [reading], [given])), {"kl": 1.0})
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert not model.mask_hidden.grad.any()
    states = twin.states(reading.ids.tolist(), reading.aux, 1)
    losses = []
    for row in (5, 6):
        log_p, log_q = ((twin.head @ one).log_softmax(0) for one in (reading.last[row + 1], states[0, row]))
        losses.append((log_p.exp() * (log_p - log_q)).sum())
    assert torch.allclose(loss, sum(losses) / 2, atol=1e-10)


def test_the_masks_state_is_drawn_as_wide_as_a_normed_state() -> None:
    found = {spec.name: initial(PEAGLE, VERIFIER, spec, stream(0)) for spec in trained(PEAGLE, VERIFIER)}
    assert found["mask_hidden"].shape == (1, 1, 3 * HIDDEN)
    assert 0.8 < found["mask_hidden"].std() < 1.2
    assert 0.01 < found["fc.weight"].std() < 0.03


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=160, validation=8)


def run(world: World, name: str, draft: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    return measured(world.job(name, draft=PEAGLE | draft, train=train))


def test_it_learns_to_draft(world: World) -> None:
    sampling = {"ratio": 0.7, "floor": 0.2, "anchors": 512}
    draft = {"sampling": sampling, "intermediate_size": 256}
    metrics = run(world, "learns", draft, {"precision": "bf16", "epochs": 8})
    best = assert_learnt(metrics, 4)
    assert metrics["initial"]["simulated"]["mean_acceptance_length"] < 1.2
    assert best["validation_loss"] < 1 < metrics["initial"]["validation_loss"]


def test_zero_3_and_muon_take_its_parameters(world: World) -> None:
    train = {"zero": {"stage": 3}, "optimizer": MUON, "epochs": None, "steps": 12}
    metrics = run(world, "muon", {}, train)
    assert metrics["epochs"][0]["validation_loss"] < metrics["initial"]["validation_loss"]
