"""What vLLM's CPU build cannot run is known of a class of machines before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from specc.core.language import Document
from specc.core.lock import CLASSES
from specc.core.runnable import refusals

PLAIN = {"model_type": "llama"}
EVERY = set(CLASSES)
WIDE = {"cuda", "cpu-amx", "cpu-avx512_bf16", "cpu-avx512"}
AMX = {"cuda", "cpu-amx"}


def quantised(scheme: str, group: object = 128, **more: Any) -> dict[str, Any]:
    return PLAIN | {"quantization": {"method": "compressed-tensors", "scheme": scheme, "group": group, **more}}


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        (PLAIN, EVERY),
        (quantised("W8A8", "channel"), EVERY),
        (quantised("FP8", "channel"), EVERY),
        (quantised("FP8", "tensor"), AMX),
        (quantised("FP8", "block"), AMX),
        (quantised("W4A16"), WIDE),
        (quantised("W8A16", "channel"), {"cuda"}),
        (quantised("W4A16+W8A8", "several"), WIDE),
        (quantised("W4A16", act_order=True), {"cuda"}),
        (quantised("MXFP4", 32) | {"model_type": "gpt_oss"}, AMX),
        (quantised("W8A8", "channel") | {"model_type": "qwen3_moe"}, AMX),
        ({"model_type": "qwen3_moe"}, EVERY),
    ],
)
def test_a_verifier_is_run_by_the_classes_that_have_its_kernels(config: dict[str, Any], classes: set[str]) -> None:
    values = {"verifier": {"config": config}}
    assert {name for name, row in CLASSES.items() if not refusals(values, row, None)} == classes


def test_the_words_name_what_would_run_it_and_stand_at_the_verifier() -> None:
    document = Document.parse("version: 1\nverifier: {model: ./small}\n", "s.yaml")
    (error,) = refusals({"verifier": {"config": quantised("W4A16")}}, CLASSES["cpu-avx2"], document)
    assert (error.id, str(error.where)) == ("E0331", "s.yaml:2:19")
    assert "runs on a CPU with `amx`, `avx512_bf16` or `avx512` alone, and the class has `avx2`" in error.message
    assert error.hint is not None
    assert "--class cuda" in error.hint
    (other,) = refusals({"verifier": {"config": quantised("W8A16")}}, CLASSES["cpu-amx"], None)
    assert other.message.endswith("which vLLM 0.32 runs on no CPU")
