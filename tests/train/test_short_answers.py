"""Batches of nothing but answers that are shorter than a draft: yes, no, a number."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from specc.train.models import Batch  # noqa: E402
from train.blocks import SECTIONS, batch, document, make, masked  # noqa: E402
from train.world import DRAFT, PEAGLE  # noqa: E402

pytestmark = pytest.mark.engine
PROMPT = 7


@pytest.mark.parametrize("answer", [2, 3])
@pytest.mark.parametrize("draft", [DRAFT, PEAGLE, *SECTIONS.values()], ids=lambda draft: draft["algorithm"])
def test_a_batch_of_short_answers_is_learnt_from(draft: dict[str, Any], answer: int) -> None:
    """An answer's first token is never proposed, so that one of two tokens is one target, of the first step alone."""
    model, *_ = make(draft)
    whole, mask = document(PROMPT + answer, 1), masked(PROMPT + answer, (PROMPT, PROMPT + answer))
    content = batch(model, [whole, whole], [mask, mask])
    loss = model(Batch(content), {"kl": 1.0})
    assert torch.isfinite(loss)
    assert loss > 0
    loss.backward()
    assert all(weights.grad.isfinite().all() for weights in model.parameters() if weights.grad is not None)
    assert any(weights.grad.any() for weights in model.parameters() if weights.grad is not None)
