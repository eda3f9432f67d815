"""The verifier in transformers computes what vLLM does: also where transformers by itself would leave something out."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from small import make_family  # noqa: E402
from specc.evaluate.reference import Reference  # noqa: E402

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(("family", "capped"), [("gemma2", True), ("llama", False)])
def test_logits_of_attention_are_capped_where_the_family_caps_them(family: str, capped: bool, tmp_path: Path) -> None:
    own = {"attn_logit_softcapping": 0.5} if capped else {}
    make_family(tmp_path, family, **own)
    row, layers = [3, 1, 4, 1, 5, 9, 2, 6], [0, 1]
    reading, _ = Reference(tmp_path, dtype="float32", device="cpu").read(row, layers=layers, ahead=0)

    def states(attention: str) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
        with torch.no_grad():
            found = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        return torch.stack([found[layer][0] for layer in layers], 1)  # [tokens, layers, hidden]

    assert torch.allclose(reading.aux, states("eager"), atol=1e-3)
    assert torch.allclose(states("sdpa"), states("eager"), atol=1e-3) is not capped, "torch's own has no cap"
