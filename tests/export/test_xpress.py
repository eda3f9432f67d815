"""xPress in the speculators format: its fields, its tensors, and the way back into training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from export.roundtrip import assert_goes_on_with_the_same_bits, written  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.files import tensor_headers  # noqa: E402
from specc.export import read_speculator, require  # noqa: E402
from specc.export.card import card  # noqa: E402
from specc.export.formats import speculator_format  # noqa: E402

pytestmark = pytest.mark.engine

DRAFT: dict[str, Any] = {
    "algorithm": "xpress", "layers": 1, "vocabulary": 96, "hidden_state_layers": [4], "block_size": 5,
    "sample_from_anchor": False, "sliding_window": None, "sliding_window_causal": False, "intermediate_size": 96,
    "mask_token": 2, "anchors": 512, "position_weights": {"name": "exponential", "gamma": 4.0},
    "refiner": {"rank": 12, "mlp_ratio": 3, "passes": 4, "rounds": 2, "own_weight": 0.3, "base_weight": 0.6},
    "init": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=8, dtype="float32")


@pytest.fixture(scope="module")
def speculator(verifier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return written(verifier, tmp_path_factory.mktemp("speculator"), DRAFT)


def test_the_configuration_has_the_formats_fields(speculator: tuple[dict[str, Any], Path]) -> None:
    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig

    _, checkpoint = speculator
    config = json.loads((checkpoint / "config.json").read_text())
    expected = {
        "architectures": ["XPressDraftModel"], "speculators_model_type": "xpress", "xpress_rank": 12,
        "xpress_mlp_ratio": 3, "num_jacobi_passes": 4, "block_size": 5, "mask_token_id": 2,
        "aux_hidden_state_layer_ids": [4], "sample_from_anchor": False, "sliding_window_non_causal": True,
        "draft_vocab_size": 96, "target_hidden_size": None,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3  # the spec's
    # The day that vLLM knows it, its own reading of these fields is to be compared here.
    with pytest.raises(ValueError, match="Expected one of"):
        SpeculatorsConfig.from_pretrained(str(checkpoint))
    assert algorithm("xpress").vllm({}) == ()


def test_tensors_are_those_of_the_layout(speculator: tuple[dict[str, Any], Path]) -> None:
    values, checkpoint = speculator
    hidden = values["verifier"]["config"]["hidden_size"]
    config, headers = read_speculator(checkpoint)
    require(algorithm("xpress").layout(DRAFT, values["verifier"]["config"]), headers, "float32", where="here")
    shapes = {header.name: header.shape for header in tensor_headers(checkpoint / "model.safetensors")}
    refiner = {name.removeprefix("refiner_head."): one for name, one in shapes.items() if "refiner" in name}
    assert refiner == {
        "token_embed.weight": (384, 12), "down_h.weight": (12, hidden), "down_g.weight": (12, hidden),
        "in_proj.weight": (12, 36), "mix_l": (12, 5, 5), "mlp_gate.weight": (36, 12), "mlp_up.weight": (36, 12),
        "mlp_down.weight": (12, 36), "readout.weight": (96, 12),
    }  # fmt: skip
    back = speculator_format("xpress").draft(config)
    assert back.pop("refiner") == {"rank": 12, "mlp_ratio": 3, "passes": 4}
    assert back == {name: DRAFT[name] for name in back}


def test_the_card_says_what_is_particular_to_it(speculator: tuple[dict[str, Any], Path]) -> None:
    words = card(speculator[0])
    assert "of rank 12, 4 passes" in words
    assert "mean of 2 passes over its own tokens, weighted 0.3" in words


def test_training_goes_on_with_the_same_bits(speculator: tuple[dict[str, Any], Path], verifier: Path) -> None:
    assert_goes_on_with_the_same_bits(*speculator, verifier)
