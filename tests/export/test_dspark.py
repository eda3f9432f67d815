"""DSpark in the speculators format: what vLLM reads of it, and the way back into training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import drafts
from small import make_verifier
from specc.core.algorithms import algorithm
from specc.core.errors import SpeccError
from specc.core.files import tensor_headers
from specc.export import read_speculator
from specc.export.formats import speculator_format

pytestmark = pytest.mark.engine

SECTION: dict[str, Any] = {
    "algorithm": "dspark", "layers": 2, "vocabulary": 96, "hidden_state_layers": [1, 3, 4, 6], "block_size": 5,
    "sample_from_anchor": True, "sliding_window": None, "sliding_window_causal": False, "intermediate_size": 80,
    "mask_token": 7, "anchors": 32, "position_weights": {"name": "exponential", "gamma": 4.0},
    "markov": {"type": "vanilla", "rank": 12}, "confidence": {"with_markov": True, "weight": 1.0}, "init": None,
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {},
    {"vocabulary": 384, "confidence": None, "sample_from_anchor": False, "sliding_window": 16},
    {"markov": {"type": "gated", "rank": 12}, "sliding_window": 16, "sliding_window_causal": True},
    {"markov": {"type": "rnn", "rank": 12}, "confidence": {"with_markov": False, "weight": 1.0}},
]


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=8)


def values_of(verifier: Path, changes: dict[str, Any]) -> dict[str, Any]:
    values = drafts.resolved(verifier, **(SECTION | changes))
    values["export"] = {"speculative_tokens": algorithm("dspark").drafted(values["draft"])[0], "dtype": "float32"}
    return values


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_checkpoint_holds_to_the_layout_and_is_read_back(
    changes: dict[str, Any], verifier: Path, tmp_path: Path
) -> None:
    values = values_of(verifier, changes)
    folder = drafts.assemble(tmp_path / "c", values, verifier)
    layout = algorithm("dspark").layout(values["draft"], values["verifier"]["config"])
    config, headers = read_speculator(folder)
    assert [(one.name, one.shape) for one in headers] == [(spec.name, spec.shape) for spec in layout]
    assert headers == tensor_headers(folder / "model.safetensors")
    names = {one.name for one in headers}
    assert "embed_tokens.weight" not in names
    assert ("lm_head.weight" in names) == ("d2t" in names) == (values["draft"]["vocabulary"] == 96)
    assert ("confidence_head.proj.bias" in names) == (values["draft"]["confidence"] is not None)
    back = speculator_format("dspark").draft(config)
    draft = values["draft"]
    for name in ("layers", "vocabulary", "block_size", "sample_from_anchor", "markov", "mask_token", "sliding_window"):
        assert back[name] == draft[name], name
    assert "rank 12" in (folder / "README.md").read_text()


@pytest.mark.parametrize("changes", VARIANTS)
def test_vllm_reads_the_configuration_as_it_is_meant(changes: dict[str, Any], verifier: Path, tmp_path: Path) -> None:
    from vllm.model_executor.models.qwen3_dflash import _dflash_layer_causal, dflash_has_any_non_causal
    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig
    from vllm.v1.worker.gpu.spec_decode.utils import get_parallel_drafting_token_id

    values = values_of(verifier, changes)
    draft, folder = values["draft"], drafts.assemble(tmp_path / "c", values, verifier)
    raw = json.loads((folder / "config.json").read_text())
    tokens = draft["block_size"] - (not draft["sample_from_anchor"])
    assert SpeculatorsConfig.extract_vllm_speculative_config(raw) == {
        "method": "dspark",
        "num_speculative_tokens": tokens,
    }
    read: Any = SpeculatorsConfig.from_pretrained(str(folder))
    assert read.architectures == ["Qwen3DSparkModel"]
    assert read.sample_from_anchor == draft["sample_from_anchor"]
    assert read.block_size == draft["block_size"]
    assert read.draft_vocab_size == draft["vocabulary"]
    assert (read.markov_rank, read.markov_head_type) == (12, draft["markov"]["type"])
    assert read.enable_confidence_head == (draft["confidence"] is not None)
    assert read.confidence_head_with_markov == bool((draft["confidence"] or {}).get("with_markov"))
    assert read.target_layer_ids == [0, 2, 3, 5], "vLLM counts a layer's output, the format its input"
    assert read.eagle_aux_hidden_state_layer_ids == draft["hidden_state_layers"]
    assert get_parallel_drafting_token_id(read) == 7
    causal = draft["sliding_window"] is not None and draft["sliding_window_causal"]
    assert [_dflash_layer_causal(read, layer) for layer in range(2)] == [causal] * 2
    assert dflash_has_any_non_causal(read) is not causal
    assert read.sliding_window == draft["sliding_window"]


def test_every_flag_is_in_the_configuration(verifier: Path, tmp_path: Path) -> None:
    folder = drafts.assemble(tmp_path / "c", values_of(verifier, {"confidence": None}), verifier)
    config = json.loads((folder / "config.json").read_text())
    found = {name: config[name] for name in algorithm("dspark").fields(SECTION)}
    assert found == {
        "aux_hidden_state_layer_ids": [1, 3, 4, 6], "block_size": 5, "confidence_head_with_markov": False,
        "draft_vocab_size": 96, "enable_confidence_head": False, "markov_head_type": "vanilla", "markov_rank": 12,
        "mask_token_id": 7, "sample_from_anchor": True, "sliding_window_non_causal": True, "target_hidden_size": None,
    }  # fmt: skip
    del config["markov_rank"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpeccError, match="missing or malformed: `markov_rank`"):
        read_speculator(folder)


def test_training_goes_on_with_the_same_bits(verifier: Path, tmp_path: Path) -> None:
    from export.roundtrip import assert_goes_on_with_the_same_bits

    values = values_of(verifier, {"markov": {"type": "gated", "rank": 12}})
    assert_goes_on_with_the_same_bits(values, drafts.assemble(tmp_path / "c", values, verifier), verifier)


def test_vllm_loads_the_tensors_and_chooses_the_same_tokens(verifier: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from specc.train.models import load, read_verifier

    job: dict[str, Any] = {"verifier": str(verifier), "checkpoints": [], "work": str(tmp_path)}
    random = torch.Generator().manual_seed(5)
    states = {"anchors": torch.randint(384, (6,), generator=random)}
    expected: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for number, changes in enumerate(VARIANTS):
        values = values_of(verifier, changes)
        draft, config = values["draft"], values["verifier"]["config"]
        folder = drafts.assemble(tmp_path / str(number), values, verifier)
        job["checkpoints"].append(str(folder))
        tensors = load_file(folder / "model.safetensors")
        frozen = read_verifier(verifier, config, tensors.get("d2t"), torch.float32)
        model: Any = load(tensors, draft, config, frozen)
        every = torch.randn(6, draft["block_size"], config["hidden_size"], generator=random)
        # vLLM's speculator hands on the states that propose something.
        states[f"states.{number}"] = every[:, 1 - model.ahead :].contiguous()
        with torch.inference_mode():
            drafted = model.decode(every, states["anchors"])
            confidence = None
            if model.confidence_head is not None:
                before = torch.cat((states["anchors"][:, None], drafted[:, :-1]), 1)
                embeds = model.markov_head.markov_w1(before).flatten(0, 1)
                logits = model.confidence_head(states[f"states.{number}"].flatten(0, 1), embeds)
                confidence = torch.sigmoid(logits).view(drafted.shape)
        expected.append((drafted, confidence))
    save_file(states, tmp_path / "states.safetensors")
    job["states"] = str(tmp_path / "states.safetensors")
    (tmp_path / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("vllm_dspark.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "job.json")],
        env=drafts.environment(tmp_path), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for (drafted, confidence), one in zip(expected[:2], found[:2], strict=True):
        assert one["drafts"] == drafted.tolist()
        if confidence is None:
            assert one["confidence"] is None
        else:
            assert torch.allclose(torch.tensor(one["confidence"]), confidence, atol=1e-5)
    assert len({tuple(row) for row in found[0]["drafts"]}) > 1
    # Nothing in vLLM makes a bias from more than the token before.
    assert "named 'markov_head.gate" in found[2]["refused"]
    assert "named 'markov_head.joint_proj" in found[3]["refused"]
