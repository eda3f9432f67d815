"""Holding tensors to the layout, and reading speculators of unknown origin; nothing here needs an engine."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from specc.core.algorithms import TensorSpec
from specc.core.errors import SpeccError
from specc.core.files import TensorHeader
from specc.export import compare, read_speculator, require

LAYOUT = [
    TensorSpec("fc.weight", (8, 24)),
    TensorSpec("norm.weight", (8,)),
    TensorSpec("d2t", (4,), "I64", "vocabulary"),
]


def header(name: str, dtype: str, *shape: int) -> TensorHeader:
    return TensorHeader(name, dtype, shape, 0, 0)


FITTING = [header("fc.weight", "BF16", 8, 24), header("norm.weight", "BF16", 8), header("d2t", "I64", 4)]


def test_tensors_that_fit_say_nothing() -> None:
    assert compare(LAYOUT, FITTING, "bfloat16") == []
    require(LAYOUT, FITTING, "bfloat16", where="here")


def test_everything_wrong_is_said_at_once() -> None:
    found = [header("fc.weight", "BF16", 24, 8), header("norms.weight", "BF16", 8), header("extra", "F32", 2)]
    with pytest.raises(SpeccError) as caught:
        require(LAYOUT, found, "bfloat16", where="model.safetensors")
    assert caught.value.message == (
        "4 tensors do not fit the layout: `d2t` [4] is missing; `fc.weight` is [24, 8], not [8, 24]; "
        "`norm.weight` is named `norms.weight`; `extra` [2] is not in the layout"
    )


def test_a_dtype_counts_too() -> None:
    assert compare(LAYOUT, FITTING, "float32") == ["`fc.weight` is BF16, not F32", "`norm.weight` is BF16, not F32"]


GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "config.json").read_text())


def without(*path: str) -> dict[str, Any]:
    """Return the golden configuration less one field."""
    config = json.loads(json.dumps(GOLDEN))
    node = config
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "not a JSON object"),
        ({"model_type": "llama"}, "not in the speculators format: `speculators_model_type` is missing"),
        ({**GOLDEN, "model_type": "llama"}, "a top-level `model_type` makes vLLM take a speculator for a plain model"),
        ({**GOLDEN, "speculators_model_type": "medusa"}, "speculators of type `medusa` cannot be read or written"),
        ({**GOLDEN, "dtype": "int4"}, "a field of the speculators format is missing or malformed: `dtype`"),
        (without("norm_output"), "a field of the speculators format is missing or malformed: `norm_output`"),
        (
            without("speculators_config", "verifier", "name_or_path"),
            "a field of the speculators format is missing or malformed: `name_or_path`",
        ),
        (
            {**GOLDEN, "draft_vocab_size": "many"},
            "a field of the speculators format is missing or malformed",
        ),
    ],
)
def test_a_configuration_that_vllm_would_stumble_over_is_refused(config: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(SpeccError) as caught:
        read_speculator(tmp_path)
    assert caught.value.message.startswith(message)
    assert caught.value.where == str(tmp_path / "config.json")


def test_a_configuration_without_its_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOLDEN))
    with pytest.raises(SpeccError, match=r"no speculator: `model\.safetensors` is missing"):
        read_speculator(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(SpeccError, match=r"17 tensors do not fit the layout"):
        read_speculator(tmp_path)
