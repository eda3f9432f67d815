"""What vLLM's CPU build cannot run is known of a class of machines before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from specc.core import runnable
from specc.core.errors import SpeccError
from specc.core.language import Document
from specc.core.lock import CLASSES
from specc.core.runnable import WITH_TORCHVISION, refusals

PLAIN = {"model_type": "llama"}
EVERY = set(CLASSES)
WIDE = {"cuda", "cpu-amx", "cpu-avx512_bf16", "cpu-avx512"}
AMX = {"cuda", "cpu-amx"}


def quantised(scheme: str, group: object = 128, **more: Any) -> dict[str, Any]:
    return PLAIN | {"quantization": {"method": "compressed-tensors", "scheme": scheme, "group": group, **more}}


def values(scheme: str) -> dict[str, Any]:
    return {"verifier": {"config": quantised(scheme), "dtype": "bfloat16"}}


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
    spec = {"verifier": {"config": config, "dtype": "bfloat16"}}
    assert {name for name, row in CLASSES.items() if not refusals(spec, row, None)} == classes


@pytest.mark.parametrize(
    ("dtype", "prompts", "where", "hint"),
    [
        ("bfloat16", None, None, ""),
        ("bfloat16", 0, None, ""),
        ("bfloat16", 4, "s.yaml:3:52", "set `evaluate.lossless_prompts` to 0"),
        ("float32", 4, "s.yaml:2:35", "use `dtype: bfloat16`"),
        ("float16", None, "s.yaml:2:35", "use `dtype: bfloat16`"),
    ],
)
def test_linear_attention_is_computed_in_bf16_alone_on_a_cpu(
    dtype: str, prompts: int | None, where: str | None, hint: str
) -> None:
    text = f"version: 1\nverifier: {{model: ./small, dtype: {dtype}}}\n"
    spec: dict[str, Any] = {"verifier": {"config": PLAIN | {"linear_attention": True}, "dtype": dtype}}
    if prompts is not None:
        text += f"evaluate: {{prompts: [{{file: a}}], lossless_prompts: {prompts}}}\n"
        spec["evaluate"] = {"lossless_prompts": prompts}
    document = Document.parse(text, "s.yaml")

    def said(name: str) -> list[SpeccError]:
        return refusals(spec, CLASSES[name], document)

    assert [(one.id, str(one.where)) for one in said("cpu-amx")] == ([("E0334", where)] if where else [])
    assert all((one.hint or "").startswith(hint) for one in said("cpu-avx2"))
    assert not said("cuda")
    spec["verifier"]["config"] = PLAIN
    assert not said("cpu-amx")


def test_the_words_name_what_would_run_it_and_stand_at_the_verifier() -> None:
    document = Document.parse("version: 1\nverifier: {model: ./small}\n", "s.yaml")
    (error,) = refusals(values("W4A16"), CLASSES["cpu-avx2"], document)
    assert (error.id, str(error.where)) == ("E0331", "s.yaml:2:19")
    assert "runs on a CPU with `amx`, `avx512_bf16` or `avx512` alone, and the class has `avx2`" in error.message
    assert error.hint is not None
    assert "--class cuda" in error.hint
    (other,) = refusals(values("W8A16"), CLASSES["cpu-amx"], None)
    assert other.message.endswith("which vLLM 0.32 runs on no CPU")


@pytest.mark.parametrize("family", sorted(WITH_TORCHVISION))
def test_a_family_that_needs_torchvision_is_refused_where_vllm_is_without_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"verifier": {"config": {"model_type": family}, "dtype": "bfloat16"}}
    here = {"vllm"}
    monkeypatch.setattr(runnable, "find_spec", here.__contains__)
    (error,) = refusals(spec, CLASSES["cpu-amx"], None)
    assert error.id == "E0335"
    assert not refusals(spec, CLASSES["cuda"], None)
    here.add("torchvision")
    assert not refusals(spec, CLASSES["cpu-amx"], None)
    here.clear()
    assert not refusals(spec, CLASSES["cpu-amx"], None), "nothing is built here, and nobody knows of the other machine"
