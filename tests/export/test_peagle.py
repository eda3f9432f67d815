"""P-EAGLE in the speculators format: what vLLM reads of it, and the way back into training."""

from __future__ import annotations

import json
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
    "algorithm": "peagle", "layers": 1, "decoder": "llama", "vocabulary": 96, "hidden_state_layers": [2, 4, 5],
    "norm_before_residual": True, "norm_before_fc": True, "sliding_window": None, "intermediate_size": 80,
    "mask_token": 7, "depths": 4, "sampling": {"ratio": 0.7, "floor": 0.2, "anchors": 64}, "init": None,
}  # fmt: skip
VARIANTS: list[dict[str, Any]] = [
    {},
    {"layers": 2, "decoder": "qwen3", "vocabulary": 384, "hidden_state_layers": [1, 3, 5, 6], "sliding_window": 16,
     "norm_before_residual": False, "norm_before_fc": False},
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=8)


def assembled(verifier: Path, folder: Path, changes: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    values = drafts.resolved(verifier, **(SECTION | changes))
    values["export"] = {"speculative_tokens": 4, "dtype": "float32"}
    return values, drafts.assemble(folder / "c", values, verifier)


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_checkpoint_holds_to_the_layout_and_is_read_back(
    changes: dict[str, Any], verifier: Path, tmp_path: Path
) -> None:
    values, folder = assembled(verifier, tmp_path, changes)
    draft = values["draft"]
    layout = algorithm("peagle").layout(draft, values["verifier"]["config"])
    config, headers = read_speculator(folder)
    assert [(one.name, one.shape) for one in headers] == [(spec.name, spec.shape) for spec in layout]
    assert headers == tensor_headers(folder / "model.safetensors")
    shapes = {one.name: one.shape for one in headers}
    width = len(draft["hidden_state_layers"]) * values["verifier"]["config"]["hidden_size"]
    assert shapes["mask_hidden"] == (1, 1, width)
    assert ("input_norm.weight" in shapes) == draft["norm_before_fc"]
    assert ("d2t" in shapes) == ("t2d" in shapes) == (draft["vocabulary"] == 96)
    back = speculator_format("peagle").draft(config)
    assert back == {name: draft[name] for name in back}
    card = (folder / "README.md").read_text()
    assert "4, with token 7 for those not known yet" in card
    assert '"parallel_drafting": true' in card


@pytest.mark.parametrize("changes", VARIANTS)
def test_vllm_reads_the_configuration_as_it_is_meant(changes: dict[str, Any], verifier: Path, tmp_path: Path) -> None:
    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig

    values, folder = assembled(verifier, tmp_path, changes)
    draft, raw = values["draft"], json.loads((folder / "config.json").read_text())
    assert (raw["architectures"], raw["auto_map"]) == (["PeagleDraftModel"], {"": "config.PeagleSpeculatorConfig"})
    own = {name: raw[name] for name in algorithm("peagle").fields(draft)}
    assert own == {
        "draft_vocab_size": draft["vocabulary"], "eagle_aux_hidden_state_layer_ids": draft["hidden_state_layers"],
        "embed_requires_grad": False, "mask_token_id": 7, "norm_before_fc": draft["norm_before_fc"],
        "norm_before_residual": draft["norm_before_residual"], "target_hidden_size": None,
    }  # fmt: skip
    assert "fc_norm" not in raw
    assert "norm_output" not in raw
    assert SpeculatorsConfig.extract_vllm_speculative_config(raw) == {
        "num_speculative_tokens": 4,
        **algorithm("peagle").serving,
    }
    read: Any = SpeculatorsConfig.from_pretrained(str(folder))
    assert read.architectures == [f"Peagle{draft['decoder'].capitalize()}ForCausalLM"]
    assert read.pard_token == 7
    assert read.draft_vocab_size == draft["vocabulary"]
    assert (read.norm_before_residual, read.norm_before_fc) == (draft["norm_before_residual"], draft["norm_before_fc"])
    assert read.eagle_aux_hidden_state_layer_ids == draft["hidden_state_layers"]
    assert getattr(read, "num_aux_hidden_states", 3) == len(draft["hidden_state_layers"])
    assert read.sliding_window == draft["sliding_window"]


@pytest.mark.parametrize("name", ["mask_token_id", "norm_before_residual"])
def test_a_missing_field_is_refused(name: str, verifier: Path, tmp_path: Path) -> None:
    _, folder = assembled(verifier, tmp_path, {})
    config = json.loads((folder / "config.json").read_text())
    del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpeccError, match=f"missing or malformed: `{name}`"):
        read_speculator(folder)


def test_training_goes_on_with_the_same_bits(verifier: Path, tmp_path: Path) -> None:
    from export.roundtrip import assert_goes_on_with_the_same_bits

    values, folder = assembled(verifier, tmp_path, {})
    assert_goes_on_with_the_same_bits(values, folder, verifier)
