"""Verifiers that are not plain Llamas, from a spec to a draft in vLLM, by the command line and real engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import drafts
from test_end_to_end import specc

pytestmark = pytest.mark.engine

SPEC = """\
version: 1
name: tiny
verifier: {{model: ./tiny, dtype: float32}}
draft: {draft}
data:
  sources: [{{file: prompts.jsonl}}]
  responses: {{from: verifier, max_tokens: 32}}
  validation: 0.1
  sequence_length: 128
train:
  epochs: {epochs}
  batch_tokens: 512
  precision: fp32
  optimizer: {{name: adamw, learning_rate: 4e-3}}
evaluate:
  prompts: [{{file: held-out.jsonl}}]
  max_tokens: 48
checks: {{lossless: true}}
runtime: {{threads: 2}}
"""
SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 383,
}  # fmt: skip
FULL = pytest.mark.full


def build(folder: Path, draft: str, epochs: int = 8) -> tuple[dict[str, Any], dict[str, str]]:
    """Build a draft for the verifier in `folder/tiny`; return its evaluation and the digests of all stages."""
    from small import write_prompts

    write_prompts(folder / "prompts.jsonl", 64)
    write_prompts(folder / "held-out.jsonl", 12, start=500)
    (folder / "tiny.yaml").write_text(SPEC.format(draft=draft, epochs=epochs))
    built = json.loads(specc(folder, "build", "--json", "tiny.yaml").stdout)["artifacts"]
    return json.loads((artifact(folder, "evaluation") / "evaluation.json").read_text()), built


def artifact(folder: Path, stage: str) -> Path:
    (found,) = (folder / ".specc/store").glob(f"*-{stage}-*/")
    return found


@pytest.mark.parametrize(
    ("family", "epochs"),
    [
        *(pytest.param(name, 8, marks=FULL) for name in ("gemma2", "cohere2", "gemma3_text", "mixtral")),
        *(pytest.param(name, 32, marks=FULL) for name in ("granite", "qwen2_moe")),  # which are harder to learn
    ],
)
def test_a_draft_for_a_family_is_served_as_it_was_trained(family: str, epochs: int, tmp_path: Path) -> None:
    """Served and replayed counts are equal: what the family does to norms, embeddings and logits is what vLLM does."""
    from small import CHATML, make_family, make_tokenizer

    folder = tmp_path / "tiny"
    make_tokenizer(folder, CHATML)
    make_family(folder, family, **SIZES)
    drafts.calm(folder)
    found, _ = build(tmp_path, "{algorithm: eagle3, hidden_state_layers: [1, 2, 3]}", epochs)
    served, simulated = found["served"], found["simulated"]
    assert found["runtime"] == "vllm"
    assert served["accepted"] >= 5
    assert [served[name] for name in ("drafts", "accepted", "accepted_per_position")] == [
        simulated[name] for name in ("drafts", "accepted", "accepted_per_position")
    ]
    assert found["lossless"]["fp32"]["identical"] == found["lossless"]["fp32"]["prompts"]


@pytest.mark.parametrize("family", ["mimo", pytest.param("qwen3_next", marks=FULL)])
def test_a_native_head_is_trained_put_back_and_served(family: str, tmp_path: Path) -> None:
    """MiMo as it is published: its configuration is code in its repository, which nothing here runs."""
    import mtp_heads

    folder = mtp_heads.make(tmp_path / "tiny", family)
    if family == "mimo":
        path = folder / "config.json"
        code = {"AutoConfig": "configuration_mimo.MiMoConfig", "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mimo", "auto_map": code}))
        (folder / "configuration_mimo.py").write_text("raise SystemExit('code of the verifier was run')\n")
    found, built = build(tmp_path, "{algorithm: mtp}")
    assert set(built) >= {"checkpoint", "stitched", "evaluation"}
    served, simulated = found["served"], found["simulated"]
    assert served["drafts"] >= 100
    assert served["accepted_per_position"] == simulated["accepted_per_position"]
    assert found["lossless"]["fp32"]["identical"] == found["lossless"]["fp32"]["prompts"]
    report = json.loads((artifact(tmp_path, "stitched") / "stitched.json").read_text())
    assert report["changed"]
    assert not report["added"]
    assert all(one["changed_elements"] for one in report["changed"])
    assert "stitched" in specc(tmp_path, "serve", "--dry-run", "tiny.yaml").stdout
