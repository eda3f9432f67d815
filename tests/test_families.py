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
verifier: {{model: ./tiny, dtype: {dtype}}}
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
  lossless_prompts: {exact}
checks: {{lossless: {checked}}}
runtime: {runtime}
"""
SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 383,
}  # fmt: skip
FULL = pytest.mark.full


EAGLE3 = "{algorithm: eagle3, hidden_state_layers: [1, 2, 3]}"


def write_spec(folder: Path, *, draft: str = EAGLE3, epochs: int = 8, dtype: str = "float32",
               runtime: str = "{threads: 2}", exact: int = 4) -> None:  # fmt: skip
    """Write `tiny.yaml` and its prompts for the verifier in `folder/tiny`; `exact` of them are compared in fp32."""
    from small import write_prompts

    write_prompts(folder / "prompts.jsonl", 64)
    write_prompts(folder / "held-out.jsonl", 12, start=500)
    (folder / "tiny.yaml").write_text(SPEC.format(draft=draft, epochs=epochs, dtype=dtype, runtime=runtime,
                                                  exact=exact, checked=str(exact > 0).lower()))  # fmt: skip


def build(folder: Path, **how: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Build a draft for the verifier in `folder/tiny`; return its evaluation and the digests of all stages."""
    write_spec(folder, **how)
    built = json.loads(specc(folder, "build", "--json", "tiny.yaml").stdout)["artifacts"]
    return json.loads((artifact(folder, "evaluation") / "evaluation.json").read_text()), built


def artifact(folder: Path, stage: str) -> Path:
    (found,) = (folder / ".specc/store").glob(f"*-{stage}-*/")
    return found


EPOCHS = {
    "cohere": 32, "cohere2": 8, "gemma": 8, "gemma2": 8, "gemma3_text": 8, "gpt_oss": 8, "granite": 32, "mistral": 32,
    "mixtral": 8, "olmo2": 8, "phi3": 8, "qwen2": 8, "qwen2_moe": 32, "qwen3": 8, "qwen3_moe": 8,
}  # fmt: skip
"""How long a draft has to learn of a random verifier, until something of it is accepted."""


@pytest.mark.parametrize(
    ("family", "epochs"),
    [pytest.param(*item, marks=FULL if item[0] != "qwen3_moe" else ()) for item in EPOCHS.items()],
)
def test_a_draft_for_a_family_is_served_as_it_was_trained(family: str, epochs: int, tmp_path: Path) -> None:
    """Served and replayed counts are equal: what the family does to norms, embeddings and logits is what vLLM does."""
    from small import CHATML, make_family, make_tokenizer

    folder = tmp_path / "tiny"
    make_tokenizer(folder, CHATML)
    make_family(folder, family, **SIZES)
    drafts.calm(folder)
    found, _ = build(tmp_path, epochs=epochs)
    served, simulated = found["served"], found["simulated"]
    assert found["runtime"] == "vllm"
    assert served["accepted"] >= 5
    assert [served[name] for name in ("drafts", "accepted", "accepted_per_position")] == [
        simulated[name] for name in ("drafts", "accepted", "accepted_per_position")
    ]
    assert found["lossless"]["fp32"]["identical"] == found["lossless"]["fp32"]["prompts"]


@pytest.mark.parametrize("draft", [EAGLE3, pytest.param("{algorithm: mtp}", marks=FULL)], ids=["eagle3", "mtp"])
def test_a_draft_for_linear_attention_is_served_as_it_was_trained_and_fp32_is_refused_before(
    draft: str, tmp_path: Path
) -> None:
    import mtp_heads

    kinds = ("linear_attention", "full_attention")
    mtp_heads.make(tmp_path / "tiny", "qwen3_next", dtype="bfloat16", layers=kinds)
    for dtype, place in (("float32", "3:34"), ("bfloat16", "18:21")):
        write_spec(tmp_path, draft=draft, dtype=dtype)
        for command in ("check", "plan", "build"):
            said = specc(tmp_path, command, "tiny.yaml", expect=1).stderr
            assert f"tiny.yaml:{place}: the verifier has linear attention" in said
    found, _ = build(tmp_path, draft=draft, dtype="bfloat16", exact=0)
    served, simulated = found["served"], found["simulated"]
    assert found["runtime"] == "vllm"
    assert served["accepted"] >= 5
    assert served["accepted_per_position"] == simulated["accepted_per_position"]
    assert served["drafts"] == simulated["drafts"]
    # Random weights make near ties; a state that is not put back would make more than ties.
    assert max(one["gap_ulp"] for one in found["lossless"]["bfloat16"]["first_differences"]) <= 8
    assert found["lossless"]["fp32"]["prompts"] == 0


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
    found, built = build(tmp_path, draft="{algorithm: mtp}")
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


def make_quantised(folder: Path, kind: str) -> None:
    """Write a verifier that repeats itself, its linear layers quantised."""
    from quantised import quantise
    from small import make_verifier

    quantise(drafts.calm(make_verifier(folder, layers=4, kv_heads=2, intermediate=128, max_position=256)), kind)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("ct-w8a16", "W8A16"),  # which runs on no CPU, and is said in seconds
        *(
            pytest.param(kind, says, marks=FULL)
            for kind, says in (
                ("ct-w8a8", "W8A8"), ("ct-fp8", "FP8"), ("fp8", "FP8"), ("ct-w4a16", "W4A16"), ("awq", "W4A16"),
                ("gptq", "W4A16"),
            )
        ),
    ],
)  # fmt: skip
def test_a_draft_for_a_quantised_verifier_is_built_or_it_is_said_before_that_vllm_cannot_run_it(
    kind: str, says: str, tmp_path: Path
) -> None:
    """Its own states are learnt from, and its own answers are what the draft is accepted by."""
    from specc.core.execute import machine_name
    from specc.core.lock import machine_class
    from specc.core.resolve.quantisation import quantisation
    from specc.core.runnable import refusals

    make_quantised(tmp_path / "tiny", kind)
    said_there = json.loads((tmp_path / "tiny/config.json").read_text())
    config = {"model_type": "llama", "quantization": quantisation(said_there, tied=True)}
    if refusals({"verifier": {"config": config}}, machine_class(machine_name()), None):
        write_spec(tmp_path, dtype="bfloat16")
        for command in ("check", "plan", "build"):
            said = specc(tmp_path, command, "tiny.yaml", expect=1).stderr
            assert f"the verifier's weights are {says}" in said
            assert "--class cuda" in said
        assert not list((tmp_path / ".specc/store").glob("*-verifier-*"))
        return
    found, built = build(tmp_path, dtype="bfloat16")
    served, simulated = found["served"], found["simulated"]
    assert found["runtime"] == "vllm"
    assert served["accepted"] >= 5
    # The replay does not round activations as vLLM's kernels do, so that a near tie may fall otherwise.
    assert abs(served["mean_acceptance_length"] - simulated["mean_acceptance_length"]) <= 0.1
    assert found["lossless"]["fp32"]["identical"] == found["lossless"]["fp32"]["prompts"]
    locked = json.loads((tmp_path / "tiny.lock.json").read_text())["locked"]["values"]["verifier"]["config"]
    assert locked["quantization"]["scheme"] == says
    assert f": {says}, scales by" in (artifact(tmp_path, "checkpoint") / "README.md").read_text()
    assert "verifier.config.quantization.scheme" in specc(tmp_path, "show", built["hidden_states"][:12]).stdout


@FULL
def test_a_verifier_spread_over_two_processes_repeats_and_serves_its_draft(tmp_path: Path) -> None:
    from small import make_verifier

    runtime = "{threads: 1, datagen: {tensor_parallel: 2}}"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drafts.calm(make_verifier(tmp_path / name / "tiny", layers=4, kv_heads=2, max_position=256, dtype="float32"))
    found, built = build(tmp_path / "one", runtime=runtime)
    write_spec(tmp_path / "two", runtime=runtime)
    said = specc(tmp_path / "two", "build", "--json", "--stage", "hidden_states", "tiny.yaml").stdout
    again = json.loads(said)["artifacts"]
    assert set(again) >= {"responses", "hidden_states"}
    assert {name: built[name] for name in again} == again
    served, simulated = found["served"], found["simulated"]
    assert served["accepted"] >= 5
    assert served["accepted_per_position"] == simulated["accepted_per_position"]
    assert found["lossless"]["fp32"]["identical"] == found["lossless"]["fp32"]["prompts"]
    assert "--tensor-parallel-size 2" in specc(tmp_path / "one", "serve", "--dry-run", "tiny.yaml").stdout
    (numerics,) = json.loads((tmp_path / "one/tiny.lock.json").read_text())["results"]
    assert numerics.endswith("-t1-r1-v2")
