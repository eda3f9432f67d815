"""The chunked losses against plain torch, and their gradients in fp64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from specc.core.errors import SpeccError  # noqa: E402
from specc.train import losses  # noqa: E402
from specc.train.losses import CHUNK, LOSSES, Head, check_losses, chunk_of, draft_losses  # noqa: E402
from train.world import stream  # noqa: E402

pytestmark = pytest.mark.engine
WEIGHTS = [
    *({name: 1.0} for name in LOSSES),
    {"kl": 0.3, "ce": 0.1, "tv": 2.0},
    {"rkl": 0.6, "jsd": 1.5},
    {name: 0.25 * number for number, name in enumerate(LOSSES, 1)},
]
HEADS = [{}, {"cap": 3.0, "scale": 0.7}]


class Inputs:
    """Random states, the verifier's, a head's weight, and with a rank the low-rank term of the draft's logits."""

    def __init__(self, steps: int, targets: int, hidden: int, vocabulary: int, rank: int | None = None) -> None:
        draw = stream(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.states, self.normed, self.weight = (
            normal(steps, targets, hidden), normal(targets, hidden), normal(vocabulary, hidden),
        )  # fmt: skip
        self.factors = self.readout = None
        if rank is not None:
            self.factors, self.readout = normal(steps, targets, rank), normal(vocabulary, rank)
        self.scale = normal(steps, targets)

    def learnt(self) -> list[Tensor]:
        return [one for one in (self.states, self.factors, self.readout) if one is not None]

    def gradients(self, values: Tensor) -> Sequence[Tensor]:
        """What a sum of the losses, each counted otherwise, asks of all that is learnt."""
        return torch.autograd.grad((values * self.scale.to(values.dtype)).sum(), self.learnt())


def plain(
    states: Tensor, normed: Tensor, head: Head, factors: Tensor | None = None, readout: Tensor | None = None
) -> dict[str, Tensor]:
    """Every loss as its formula says it, `[steps, targets]`, over whole logits."""
    theirs, ours = normed @ head.weight.T * head.scale, states @ head.weight.T
    if head.cap is not None:
        theirs = head.cap * torch.tanh(theirs / head.cap)
    if factors is not None and readout is not None:
        ours = ours + factors @ readout.T
    log_p, log_q = theirs.log_softmax(-1).expand_as(ours), ours.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)

    def divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    kl, overlap = divergence(log_p, log_q), torch.minimum(log_p.exp(), log_q.exp()).sum(-1)
    share = torch.exp(-3 * overlap.detach())
    return {
        "kl": kl,
        "rkl": divergence(log_q, log_p),
        "jsd": divergence(log_p, log_m) / 2 + divergence(log_q, log_m) / 2,
        "ce": F.cross_entropy(ours.flatten(0, 1), log_p.argmax(-1).flatten(), reduction="none").view_as(kl),
        "tv": 1 - overlap,
        "nla": -overlap.clamp(min=1e-5).log(),
        "lk": share * kl + (1 - share) * (1 - overlap),
        "overlap": overlap,
    }


def weighted(found: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return sum((weight * found[name] for name, weight in weights.items()), torch.zeros(()))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("rank", [None, 3])
def test_values_and_gradients_equal_plain_torch(
    weights: dict[str, float], options: dict[str, float], rank: int | None
) -> None:
    given = Inputs(3, CHUNK + 5, 8, 40, rank)
    for one in given.learnt():
        one.requires_grad_()
    arguments = (given.states, given.normed, Head(given.weight, **options))
    expected = plain(*arguments, given.factors, given.readout)
    found = draft_losses(*arguments, weights, picks=True, details=True, factors=given.factors, readout=given.readout)
    assert torch.allclose(found.losses, weighted(expected, weights), rtol=0, atol=1e-12)
    assert torch.allclose(found.overlap, expected["overlap"], rtol=0, atol=1e-12)
    assert torch.allclose(found.ce, expected["ce"], rtol=0, atol=1e-12)
    logits = given.states @ given.weight.T + (0 if rank is None else given.factors @ given.readout.T)
    assert torch.equal(found.tokens, logits.argmax(-1))
    assert not any(one.requires_grad for one in (found.tokens, found.overlap, found.ce))
    wanted = given.gradients(weighted(expected, weights))
    for one, other in zip(given.gradients(found.losses), wanted, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("weights", [one for one in WEIGHTS if "lk" not in one])  # its share of kl counts as a constant
@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("rank", [None, 2])
def test_gradients(weights: dict[str, float], options: dict[str, float], rank: int | None) -> None:
    given = Inputs(2, 3, 4, 9, rank)

    def function(states: Tensor, *low_rank: Tensor) -> Tensor:
        factors, readout = low_rank or (None, None)
        head = Head(given.weight, **options)
        return draft_losses(states, given.normed, head, weights, factors=factors, readout=readout).losses

    assert torch.autograd.gradcheck(function, [one.requires_grad_() for one in given.learnt()])


def test_only_what_is_learnt_has_a_gradient_and_only_once() -> None:
    given = Inputs(2, 5, 4, 9, 2)
    head = Head(given.weight)
    whole = [one.clone().requires_grad_() for one in given.learnt()]
    some = [given.states, given.factors, given.readout.clone().requires_grad_()]
    for states, factors, readout in (whole, some):
        draft_losses(states, given.normed, head, {"kl": 1.0}, factors=factors, readout=readout).losses.sum().backward()
    assert torch.equal(some[2].grad, whole[2].grad)
    assert given.states.grad is None
    assert given.factors.grad is None
    values = draft_losses(whole[0], given.normed, head, {"kl": 1.0}).losses
    (slope,) = torch.autograd.grad(values.square().sum(), whole[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_what_nobody_asks_for_is_empty() -> None:
    given = Inputs(2, 5, 4, 9)
    found = draft_losses(given.states, given.normed, Head(given.weight), {"kl": 1.0})
    assert [tuple(one.shape) for one in (found.losses, found.tokens, found.overlap, found.ce)] == [
        (2, 5),
        *[(2, 0)] * 3,
    ]
    assert not found.losses.requires_grad
    known = draft_losses(given.states, given.normed, Head(given.weight), {"ce": 1.0}, details=True)
    found = draft_losses(given.states, given.normed, Head(given.weight), {"kl": 1.0}, details=True)
    assert torch.equal(found.ce, known.losses)
    assert found.tokens.numel() == 0
    assert draft_losses(given.states[:, :0], given.normed[:0], Head(given.weight), {"jsd": 1.0}).losses.shape == (2, 0)
    with pytest.raises(TypeError, match="together"):
        draft_losses(given.states, given.normed, Head(given.weight), {"kl": 1.0}, factors=given.states)


@pytest.mark.parametrize(
    ("steps", "vocabulary", "size", "chunk"),
    [
        (3, 8192, 4, 64), (3, 49152, 4, 64), (3, 65536, 4, 64), (1, 128256, 2, 64), (3, 151936, 2, 55),
        (3, 151936, 4, 27), (3, 262144, 4, 16), (16, 2**20, 4, 1),
    ],
)  # fmt: skip
def test_a_chunk_is_bounded_by_rows_and_bytes(steps: int, vocabulary: int, size: int, chunk: int) -> None:
    assert chunk_of(steps, vocabulary, size) == chunk


def test_the_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Inputs(2, 17, 4, 30, 3)
    weights = dict.fromkeys(LOSSES, 1.0)
    found: list[Tensor] = []
    for size in (losses.BYTES, 3 * 5 * 30 * 8):
        monkeypatch.setattr(losses, "BYTES", size)
        learnt = [one.clone().requires_grad_() for one in given.learnt()]
        values = draft_losses(
            learnt[0], given.normed, Head(given.weight), weights, factors=learnt[1], readout=learnt[2]
        ).losses
        found.append(
            torch.cat([values.flatten(), *(one.flatten() for one in torch.autograd.grad(values.sum(), learnt))])
        )
    assert chunk_of(2, 30, 8) == 5
    assert torch.allclose(*found, rtol=0, atol=1e-11)


class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(out) if isinstance(one, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.parametrize("rank", [None, 3])
def test_nothing_as_large_as_targets_times_vocabulary_is_made_or_kept(rank: int | None) -> None:
    targets, vocabulary = 4 * CHUNK, 300
    given = Inputs(2, targets, 4, vocabulary, rank)
    for one in given.learnt():
        one.requires_grad_()
    kept: list[int] = []
    with (
        Largest() as made,
        torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one),
    ):
        found = draft_losses(
            given.states, given.normed, Head(given.weight), dict.fromkeys(LOSSES, 1.0), picks=True, details=True,
            factors=given.factors, readout=given.readout,
        )  # fmt: skip
        found.losses.sum().backward()
    assert made.elements == 3 * CHUNK * vocabulary < targets * vocabulary
    assert max(kept) == max(one.numel() for one in given.learnt())


ONE, TWO, FLAT = (torch.tensor(row) for row in ([1e4, 0, 0, 0, 0, 0], [0, 1e4, 0, 0, 0, 0], [0.0] * 6))
WIDE = torch.tensor([1e4, -1e4, 9984, 100, -9984, 0])
EXTREMES = {
    "one token each, the same": (ONE, ONE),
    "one token each, not the same": (ONE, TWO),
    "an overlap of 5e-6": (ONE * 14e-4, TWO * 14e-4),
    "the verifier's one token": (ONE, FLAT),
    "the draft's one token": (FLAT, ONE),
    "most of p and q is 0": (WIDE, WIDE.flip(0)),
    "all logits are large": (FLAT + 1e4, FLAT - 1e4),
    "a large and a small difference": (WIDE, WIDE / 1e4),
    "p is q": (WIDE / 4096, WIDE / 4096),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(name: str, dtype: torch.dtype) -> None:
    """The head is the identity: logits are exactly the states, and the states' gradients are the slopes."""
    normed, states = (torch.stack(rows).to(dtype) for rows in zip(*EXTREMES.values(), strict=True))
    states = states[None].requires_grad_()
    wide = states.detach().double().requires_grad_()
    found = draft_losses(states, normed, Head(torch.eye(6, dtype=dtype)), {name: 1.0}).losses
    expected = plain(wide, normed.double(), Head(torch.eye(6, dtype=torch.float64)))[name]
    (slopes,), (wanted,) = torch.autograd.grad(found.sum(), states), torch.autograd.grad(expected.sum(), wide)
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=2e-3)
    assert torch.allclose(slopes.double(), wanted, rtol=1e-6 if dtype == torch.float32 else 4e-3, atol=1e-3)


def test_tv_where_p_is_q() -> None:
    """Its slope is 0 where all tokens tie; at some ties it falls in no direction faster than it is said to."""
    p = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]], dtype=torch.float64)
    head = Head(torch.eye(5, dtype=torch.float64))

    def tv(states: Tensor) -> Tensor:
        return draft_losses(states, p, head, {"tv": 1.0}).losses

    same = p[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(tv(same).sum(), same)
    assert torch.equal(slope, torch.zeros_like(slope))
    swapped = p[None, :, [1, 0, 2, 3, 4]].requires_grad_()  # q ties with p in three tokens
    (slope,) = torch.autograd.grad(tv(swapped).sum(), swapped)
    at, step = tv(swapped).item(), 1e-6
    for seed in range(20):
        direction = torch.randn(1, 1, 5, generator=stream(seed), dtype=torch.float64)
        rise = (tv(swapped.detach() + step * direction).item() - at) / step
        assert rise >= (slope * direction).sum() - 1e-5


@pytest.mark.parametrize("rank", [None, 4])
def test_low_precision_stays_near(rank: int | None) -> None:
    given = Inputs(3, 70, 64, 500, rank)
    given.weight /= 8
    narrow = [one.bfloat16().requires_grad_() for one in given.learnt()]
    exact = [one.detach().double().requires_grad_() for one in narrow]
    normed, weight = given.normed.bfloat16(), given.weight.bfloat16()
    found = draft_losses(
        narrow[0], normed, Head(weight), {"kl": 1.0}, **dict(zip(("factors", "readout"), narrow[1:], strict=False))
    ).losses
    expected = plain(exact[0], normed.double(), Head(weight.double()), *exact[1:])["kl"]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=0.05)
    slopes, wanted = torch.autograd.grad(found.sum(), narrow), torch.autograd.grad(expected.sum(), exact)
    for one, other in zip(slopes, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() < 0.02 * other.norm()


def test_losses_have_names_and_weights() -> None:
    assert check_losses({"kl": 1.0, "lk": None, "nla": 0.5}) == {"kl": 1.0, "nla": 0.5}
    with pytest.raises(SpeccError, match="no loss `mse`"):
        check_losses({"kl": 1.0, "mse": 1.0})
