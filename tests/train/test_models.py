"""Packed and fused against plain: attention, the module, a training step, acceptance."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from specc.core.errors import SpeccError  # noqa: E402
from specc.train.losses import Head, draft_losses  # noqa: E402
from specc.train.models import (  # noqa: E402
    Batch,
    Frozen,
    Reading,
    accepted_lengths,
    build,
    greedy_walk,
    load,
    trained,
)
from specc.train.models import rows as packing  # noqa: E402
from specc.train.models.attention import StepAttention, blocks, visible  # noqa: E402
from specc.train.models.rows import Rows, Targets, depths, plan_queries, whole  # noqa: E402
from train.plain import Plain  # noqa: E402
from train.world import DRAFT, HIDDEN, SMALL, VERIFIER, VOCABULARY, stream  # noqa: E402

pytestmark = pytest.mark.engine
F64 = torch.float64
D2T = torch.arange(SMALL)  # draft token i is verifier token 2 i

VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm_before_residual": False, "norm_output": False},
    {"norm_before_fc": False, "fc_norm": True, "sliding_window": 4},
    {"norm_before_fc": False, "layers": 2, "sliding_window": 2},
    {"decoder": "qwen3", "layers": 2},
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=F64)


def make(draft: dict[str, Any], dtype: torch.dtype = F64) -> tuple[Any, Plain]:
    """A random draft and its twin."""
    weights = {
        spec.name: random(*spec.shape, seed=index) * (0.1 if len(spec.shape) > 1 else 0.3) + (len(spec.shape) == 1)
        for index, spec in enumerate(trained(draft, VERIFIER))
    }
    embed, head = random(VOCABULARY, HIDDEN, seed=90), random(SMALL, HIDDEN, seed=91)
    model = build(draft, VERIFIER, weights, frozen(embed.to(dtype), head.to(dtype)), D2T)
    if dtype == F64:
        model.rotary.frequencies = 10000.0 ** -(torch.arange(8, dtype=F64) / 8)
    return model, Plain(weights, draft, VERIFIER, embed, head)


def frozen(embed: Tensor, head: Tensor) -> Frozen:
    """A verifier's ends, its norm of no use."""
    return Frozen(embed, torch.ones(HIDDEN), 1e-5, Head(head), embed)


def pack(
    documents: list[tuple[Tensor, Tensor, Tensor, Tensor]], steps: int, dtype: torch.dtype = F64
) -> tuple[Rows, Targets]:
    """Documents of (tokens, loss mask, aux [tokens, 3, hidden], normed last states [tokens, hidden]), untrimmed."""
    places, deep, normed, borders, base = [], [], [], [], 0
    for tokens, mask, _, last in documents:
        depth = depths(mask)
        targets = (depth >= 0).nonzero()[:, 0]
        places.append(targets - 2 + base)
        deep.append(depth[targets])
        normed.append(last[targets - 1])
        borders.append((base, base + len(tokens) - 1))
        base += len(tokens) - 1
    aux = torch.cat([aux[:-1].flatten(1) for _, _, aux, _ in documents]).to(dtype)
    tokens, last = torch.cat([tokens[1:] for tokens, *_ in documents]), torch.cat(normed).to(dtype)
    return packing.pack(aux, tokens, borders, torch.cat(places), torch.cat(deep), last, steps)


def document(length: int, prompt: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = torch.randint(VOCABULARY, (length,), generator=stream(seed))
    mask = torch.arange(length) >= prompt
    return tokens, mask, random(length, 3, HIDDEN, seed=seed), random(length, HIDDEN, seed=seed + 1)


def test_visible_as_drawn() -> None:
    rows = torch.tensor([1, 2, 3])
    drawn = "xx.. xxx. xxxx"
    assert " ".join("".join("x" if y else "." for y in x) for x in visible(rows, 1, 0, 4, None).tolist()) == drawn
    drawn = ".x.. ..x. ...x"
    assert " ".join("".join("x" if y else "." for y in x) for x in visible(rows, 1, 0, 4, 2).tolist()) == drawn


def test_depths_as_drawn() -> None:
    mask = torch.tensor([0, 0, 1, 1, 1, 1, 0, 1, 1], dtype=torch.bool)
    assert depths(mask).tolist() == [-1, -1, -1, 0, 1, 2, -1, -1, 0]
    assert depths(torch.ones(4, dtype=torch.bool)).tolist() == [-1, -1, 0, 1], "the first token starts nothing"


def test_queries_as_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "EVEN", 2)
    queries, counted, places = plan_queries(torch.tensor([2, 3]), torch.tensor([0, 1]), 2, 4)
    assert [one.tolist() for one in queries] == [[2, 3], [2, 3]]
    assert counted.tolist() == [[True, True], [False, True]]
    assert [one.tolist() for one in places] == [[0, 1], [0, 0]]


@pytest.mark.parametrize("window", [None, 1, 2, 5])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_attention_equals_a_dense_mask(window: int | None, step: int) -> None:
    documents, own = [(0, 7), (7, 9), (9, 20)], min(step, window or step)
    rows = torch.tensor([2, 3, 4, 6, 8, 9, 10, 15, 19])
    shapes = [(len(rows), 4, 8), (20, 2, 8), (20, 2, 8), (len(rows), own, 2, 8), (len(rows), own, 2, 8)]
    one = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    two = [tensor.detach().clone().requires_grad_() for tensor in one]
    out = StepAttention.apply(*one, blocks(rows, documents, step, window))

    q, k, v, ok, ov = two
    allowed = torch.zeros(len(rows), 20, dtype=torch.bool)
    for place, row in enumerate(rows.tolist()):
        for start, end in documents:
            for key in range(start, end):
                near = window is None or key > row + step - window
                allowed[place, key] = start <= row < end and key <= row and near
    heads = []
    for head in range(4):
        scores = (q[:, head] @ k[:, head // 2].T).masked_fill(~allowed, float("-inf"))
        mine = torch.einsum("qd,qod->qo", q[:, head], ok[:, :, head // 2])
        p = (torch.cat((scores, mine), 1) / 8**0.5).softmax(-1)
        heads.append(p[:, :20] @ v[:, head // 2] + torch.einsum("qo,qod->qd", p[:, 20:], ov[:, :, head // 2]))
    dense = torch.stack(heads, 1)
    assert torch.allclose(out, dense, atol=1e-12)
    weight = random(*dense.shape, seed=9)
    (out * weight).sum().backward()
    (dense * weight).sum().backward()
    for mine, theirs in zip(one, two, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_equal_serving_one_position_at_a_time(variant: dict[str, Any]) -> None:
    draft = DRAFT | variant
    model, plain = make(draft)
    tokens, _, aux, _ = document(9, 3, seed=5)
    states = model.unroll(whole(aux.flatten(1), tokens, 3))
    expected = plain.states(tokens.tolist(), aux, 3)
    assert len(expected) == 8 + 7 + 6
    for (step, row), state in expected.items():
        assert torch.allclose(states[step][row], state, atol=1e-9), (step, row)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_step_equals_plain_torch(variant: dict[str, Any]) -> None:
    draft = DRAFT | variant | {"ttt": {"steps": 3, "decay": 0.8}}
    model, plain = make(draft)
    documents = [document(8, 3, seed=20), document(7, 5, seed=30), document(5, 0, seed=40)]
    rows, targets = pack(documents, 3)
    losses = {"kl": 1.0, "ce": 0.5, "tv": 0.25}
    loss = model(Batch((rows, targets)), losses)
    loss.backward()

    for name in plain.w:
        plain.w[name].requires_grad_()
    sums, counts = [0.0] * 3, [0] * 3
    for tokens, mask, aux, last in documents:
        states = plain.states(tokens.tolist(), aux, 3)
        for (step, row), state in states.items():
            # Counted: the token that the draft starts from and all it proposes up to here are the assistant's.
            if row + 2 + step >= len(tokens) or not mask[row + 1 : row + 3 + step].all():
                continue
            log_p = (plain.head @ last[row + 1 + step]).log_softmax(0)
            log_q = (plain.head @ state).log_softmax(0)
            kl, ce = (log_p.exp() * (log_p - log_q)).sum(), -log_q[log_p.argmax()]
            tv = 1 - torch.minimum(log_p.exp(), log_q.exp()).sum()
            sums[step] += kl + 0.5 * ce + 0.25 * tv
            counts[step] += 1
    assert counts == targets.counted.sum(1).tolist() == [8, 5, 3]
    expected = sum(0.8**k * sums[k] / counts[k] for k in range(3))
    assert torch.allclose(loss, expected, atol=1e-10)
    expected.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain.w[name].grad, atol=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_document_changes_nothing(dtype: torch.dtype) -> None:
    model, _ = make(DRAFT, dtype)
    one, two, three, other = document(20, 4, 1), document(31, 9, 2), document(13, 3, 3), document(31, 9, 4)

    def losses(rows: Rows, targets: Targets) -> Tensor:
        states = [state[where] for state, where in zip(model.unroll(rows), targets.places, strict=True)]
        return draft_losses(torch.stack(states), targets.normed, model.head, {"kl": 1.0}).losses

    before, after = losses(*pack([one, two, three], 3, dtype)), losses(*pack([one, other, three], 3, dtype))
    first, middle = 15, 21  # targets of the first and of the second document
    same = torch.ones(before.shape[1], dtype=torch.bool)
    same[first : first + middle] = False
    assert torch.equal(before[:, same], after[:, same])
    assert (before[:, ~same] != after[:, ~same]).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_accepted_lengths_equal_drafting_with_own_tokens(variant: dict[str, Any]) -> None:
    draft = DRAFT | variant
    model, plain = make(draft)
    _, _, aux, _ = document(14, 3, seed=7)
    # A row that goes on as the draft proposes, now and then: each token is the draft's choice after the one before.
    tokens = [3, 5]
    for row in range(12):
        state = plain.states([*tokens, 0], aux, 1)[0, row]
        choice = 2 * int((plain.head @ state).argmax())
        tokens.append(choice if row % 5 else 7)
    expected = plain.accepted(tokens, aux, 3, D2T)
    reading = Reading(torch.tensor(tokens), aux, aux[:, 0])
    assert accepted_lengths(model.guesses(reading, 3), reading.ids).tolist() == expected
    assert set(expected) >= {0, 1}
    short = Reading(torch.tensor([1, 2]), aux[:2], aux[:2, 0])
    assert accepted_lengths(model.guesses(short, 3), short.ids).tolist() == [0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_draft_equal_serving_one_position_at_a_time(variant: dict[str, Any]) -> None:
    model, plain = make(DRAFT | variant)
    tokens, _, aux, _ = document(9, 3, seed=5)
    drafted = torch.tensor([8, 3])
    expected = plain.states([*tokens.tolist(), *drafted.tolist()], torch.cat((aux, aux[:2])), 3)
    for count in range(3):
        found = model.logits(Reading(tokens, aux, aux[:, 0]), drafted[:count])
        assert torch.allclose(found, plain.head @ expected[count, 7], atol=1e-9), count


def test_walk_as_drawn() -> None:
    counts = greedy_walk([0, 0, 0, 0, 1, 3, 2, 0, 0, 0], first=5, last=9, steps=3)
    assert (counts.drafts, counts.accepted, counts.accepted_per_position) == (2, 3, (2, 1, 0))
    assert counts.mean_acceptance_length == 2.5
    past = greedy_walk([0] * 6 + [3] * 4, first=5, last=8, steps=3)
    assert (past.drafts, past.accepted) == (3, 3), "what is accepted past the end counts, as in vLLM"
    assert greedy_walk([3, 3], first=1, last=1, steps=3).drafts == 0, "a response of one token drafts nothing"


def test_load_takes_a_whole_checkpoint() -> None:
    model, plain = make(DRAFT, torch.float32)
    tensors = {name: tensor.float() for name, tensor in plain.w.items()}
    t2d = torch.zeros(VOCABULARY, dtype=torch.bool)
    t2d[::2] = True
    tensors |= {
        "embed_tokens.weight": plain.embed.float(),
        "lm_head.weight": plain.head.float(),
        "d2t": D2T,
        "t2d": t2d,
    }
    other = frozen(torch.zeros(VOCABULARY, HIDDEN), torch.zeros(SMALL, HIDDEN))
    again = load(tensors, DRAFT, VERIFIER, other)
    tokens, _, aux, _ = document(9, 3, seed=5)
    rows = whole(aux.float().flatten(1), tokens, 2)
    assert torch.equal(again.unroll(rows)[1], model.unroll(rows)[1])
    with pytest.raises(SpeccError, match=r"`fc\.weight` is missing"):
        load({name: tensor for name, tensor in tensors.items() if name != "fc.weight"}, DRAFT, VERIFIER, other)
    with pytest.raises(SpeccError, match="has shape"):
        load(tensors | {"norm.weight": torch.ones(3)}, DRAFT, VERIFIER, other)
