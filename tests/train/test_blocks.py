"""What every block draft keeps to: no order, rounding, other document or future changes what is computed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from specc.train.models import Reading, block, rows  # noqa: E402
from specc.train.models.dflash import DFlash  # noqa: E402
from specc.train.models.dflash2 import DFlash2  # noqa: E402
from specc.train.models.dspark import DSpark  # noqa: E402
from specc.train.models.registry import MODELS  # noqa: E402
from specc.train.models.xpress import XPress  # noqa: E402
from train.blocks import SECTIONS, batch, document, make, masked  # noqa: E402

pytestmark = pytest.mark.engine
LOSSES = {"kl": 1.0, "ce": 0.5, "tv": 0.25}
NARROW = {"sliding_window": 3, "sliding_window_causal": True}
CASES = [
    *(pytest.param(draft, id=name) for name, draft in SECTIONS.items()),
    *(pytest.param(draft | NARROW, id=f"{name}-window") for name, draft in SECTIONS.items()),
    *(pytest.param(SECTIONS["dspark"] | {"markov": {"type": kind, "rank": 8}}, id=f"dspark-{kind}")
      for kind in ("gated", "rnn")),
]  # fmt: skip
DOCUMENTS = [document(20, 1), document(31, 2), document(13, 3)]
MASKS = [masked(20, (4, 20)), masked(31, (3, 10), (20, 31)), masked(13, (0, 13))]


@pytest.mark.parametrize("draft", CASES)
def test_a_batch_is_the_sum_of_its_documents_in_any_order(
    draft: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No document sees another: what a batch is made of adds up, however it is ordered and filled up."""
    model, *_ = make(draft)

    def terms(*chosen: int) -> tuple[Any, Any]:
        return model.terms(batch(model, [DOCUMENTS[i] for i in chosen], [MASKS[i] for i in chosen]), LOSSES)

    sums, totals = terms(0, 1, 2)
    alone = [terms(number) for number in range(3)]
    others = [terms(2, 0, 1), (sum(one for one, _ in alone), sum(one for _, one in alone))]
    monkeypatch.setattr(block, "TOGETHER", 1)
    monkeypatch.setattr(rows, "EVEN", 1)
    for other_sums, other_totals in (*others, terms(0, 1, 2)):
        assert torch.allclose(sums, other_sums, rtol=1e-12, atol=1e-12)
        assert torch.allclose(totals, other_totals, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draft", CASES)
def test_states_have_the_same_bits_whatever_comes_later_or_stands_beside(
    draft: dict[str, Any], dtype: torch.dtype
) -> None:
    model, *_ = make(draft, dtype)
    one, two, three = DOCUMENTS
    known = 15
    changed = Reading(
        torch.cat((two.ids[: known + 1], (two.ids[known + 1 :] + 1) % 96)), two.aux.clone(), two.last.clone()
    )
    changed.aux[known:] += 1
    (blocks, _), (others, _) = (batch(model, [one, middle, three], MASKS) for middle in (two, changed))
    before, after = model.states(blocks), model.states(others)
    later = torch.zeros(len(blocks.places), dtype=torch.bool)
    later[slice(*blocks.spans[1].blocks)] = True
    later &= blocks.places > known
    assert later.any()
    assert torch.equal(before[~later], after[~later])
    assert (before[later] != after[later]).flatten(1).any(1).all()


def heads(model: Any, content: Any) -> list[tuple[Any, Any]]:
    """Return what the heads beside the draft's own make of a batch, and of which block each row is."""
    blocks, targets = content
    states = model.states(blocks)
    whole, owners = torch.arange(len(blocks.places)), targets.slots[targets.valid] // model.slots
    if isinstance(model, DFlash2):
        return [(model.chosen(states, targets)[targets.valid], owners)]
    if isinstance(model, DSpark):
        found = model.worth(content, LOSSES)
        return [(one[targets.valid], owners) for one in (found.overlap, found.confidence)]
    if isinstance(model, XPress):
        shared = model.refiner_head.read(states)
        passes = model.refined(states, shared, targets.tokens[:, :2], 3)
        return [*((one, whole) for one in passes), (model.refiner_head(shared, targets.tokens[:, :-1]), whole)]
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draft", [case for case in CASES if case.id not in {"dflash", "dflash-window"}])
def test_heads_have_the_same_bits_too(draft: dict[str, Any], dtype: torch.dtype) -> None:
    """The states that a later block reads are others, and the tokens the same."""
    model, *_ = make(draft, dtype)
    one, two, three = DOCUMENTS
    changed = Reading(two.ids, two.aux.clone(), two.last)
    changed.aux[15:] += 1
    content, other = (batch(model, [one, middle, three], MASKS) for middle in (two, changed))
    later = torch.zeros(len(content[0].places), dtype=torch.bool)
    later[slice(*content[0].spans[1].blocks)] = True
    later &= content[0].places > 15
    found, others = heads(model, content), heads(model, other)
    assert found
    for (before, owners), (after, _) in zip(found, others, strict=True):
        assert torch.equal(before[~later[owners]], after[~later[owners]])
        if before.is_floating_point():  # tokens may be the same by chance
            assert not torch.equal(before[later[owners]], after[later[owners]])


@pytest.mark.parametrize("draft", CASES)
def test_a_draft_sees_nothing_of_what_comes_after_its_anchor(draft: dict[str, Any]) -> None:
    model, *_ = make(draft, torch.float32)
    one, other, known = document(16, 7), document(16, 8), 9
    changed = Reading(
        torch.cat((one.ids[: known + 1], other.ids[known + 1 :])),
        torch.cat((one.aux[:known], other.aux[known:])),
        torch.cat((one.last[:known], other.last[known:])),
    )
    ours, theirs = model.guesses(one, 3), model.guesses(changed, 3)
    # The drafts that start from a known token: all of them but where the document of one of them is over.
    assert torch.equal(ours[:known], theirs[:known])
    assert not torch.equal(ours[known:], theirs[known:])


def test_every_algorithm_that_drafts_in_blocks_is_here() -> None:
    assert {name for name, model in MODELS.items() if issubclass(model, DFlash)} == set(SECTIONS)
