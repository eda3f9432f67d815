"""Quantised folders as plain ones: each format, as its library writes it, back to weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantised import FORMATS, quantise
from small import make_verifier
from specc.core.errors import SpeccError
from specc.core.resolve.quantisation import quantisation

pytestmark = pytest.mark.engine

STEPS = {"W8A16": 2 * 127, "W8A8": 2 * 127, "W4A16": 2 * 7, "FP8": 16}
"""Half a step of a row's or group's largest weight, as its inverse; of FP8, that of the weight itself."""


def facts(folder: Path) -> dict[str, object]:
    found = quantisation(json.loads((folder / "config.json").read_text()), tied=True)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("plain") / "small", layers=1, hidden=192, intermediate=256, heads=3)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_rounded_comes_back_within_half_a_step(kind: str, plain: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from specc.evaluate.dequantised import write_dequantised

    folder = quantise(Path(shutil.copytree(plain, tmp_path / "quantised")), kind)
    quantization = facts(folder)
    target = write_dequantised(folder, tmp_path / "whole", quantization, torch.float32)
    before, after = load_file(plain / "model.safetensors"), load_file(target / "model.safetensors")
    assert {name: tensor.shape for name, tensor in before.items()} == {name: one.shape for name, one in after.items()}
    for name, weight in before.items():
        wanted, found = weight.float(), after[name]
        if not name.endswith("proj.weight"):
            assert torch.equal(wanted, found), name
            continue
        largest = wanted.abs() if quantization["scheme"] == "FP8" else wanted.abs().amax(1, keepdim=True)
        step = 2 if kind == "awq" else 1  # a zero point takes a bit of it
        error = ((found - wanted).abs() / (largest + 1e-2)).max()
        assert 0 < error <= step * 1.1 / STEPS[str(quantization["scheme"])], name
    model = AutoModelForCausalLM.from_pretrained(str(target), dtype=torch.float32)
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, after["model.layers.0.mlp.down_proj.weight"])


@pytest.mark.parametrize("kind", ["ct-w8a16", "ct-w4a16"])
def test_words_are_those_of_compressed_tensors(kind: str, plain: Path) -> None:
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    from specc.evaluate.dequantised import unpack

    weight = load_file(plain / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    bits = int(kind[4])
    packed = FORMATS[kind][0](weight)["weight_packed"]
    theirs = unpack_from_int32(packed, bits, torch.Size(weight.shape))
    assert torch.equal(theirs.long(), unpack(packed, bits, 1) - 2 ** (bits - 1))


def test_experts_of_gpt_oss_are_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from specc.evaluate.dequantised import write_dequantised

    draw = torch.Generator().manual_seed(0)
    stem = "model.layers.0.mlp.experts.gate_up_proj"
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8, generator=draw)
    scales = torch.randint(118, 130, (2, 6, 3), dtype=torch.uint8, generator=draw)
    save_file({f"{stem}_blocks": blocks, f"{stem}_scales": scales, f"{stem}_bias": torch.ones(2, 6)},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}')
    target = write_dequantised(tmp_path, tmp_path / "whole", {"method": "mxfp4"}, torch.bfloat16)
    found = load_file(target / "model.safetensors")
    assert set(found) == {stem, f"{stem}_bias"}
    assert torch.equal(found[stem], convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16))
    assert "quantization_config" not in json.loads((target / "config.json").read_text())


def test_weights_of_another_method_are_refused(plain: Path, tmp_path: Path) -> None:
    import torch

    from specc.evaluate.dequantised import write_dequantised

    with pytest.raises(SpeccError, match="no weights as `awq` writes them") as error:
        write_dequantised(plain, tmp_path / "whole", {"method": "awq"}, torch.bfloat16)
    assert error.value.hint
