"""Quantised verifiers: the linear layers of a small one rounded, and written as the libraries of each format do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
"""Weights of a row that share a scale, where groups do."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Columns of eight in the order of AutoAWQ's nibbles, the lowest first."""


def quantise(folder: Path, kind: str, *, skip: tuple[str, ...] = ()) -> Path:
    """Quantise a folder's linear layers in place; `kind` is a key of `FORMATS`, `skip` are parts of names."""
    import torch
    from safetensors.torch import load_file, save_file

    write, config = FORMATS[kind]
    tensors: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("proj.weight") and weight.ndim == 2 and not any(part in name for part in skip):
            parts = write(weight.to(torch.float32))
            tensors |= {f"{name.removesuffix('weight')}{part}": one.contiguous() for part, one in parts.items()}
        else:
            tensors[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}, indent=2))
    return folder


def symmetric(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Return whole numbers of so many bits `[out, in]` and their scales `[out, groups]`."""
    rows, columns = weight.shape
    grouped = weight.view(rows, -1, group or columns)
    most = 2 ** (bits - 1) - 1
    scale = (grouped.abs().amax(-1, keepdim=True).clamp(min=1e-8) / most).bfloat16().float()  # as it is stored
    return (grouped / scale).round().clamp(-most - 1, most).view(rows, columns), scale.squeeze(-1)


def pack(values: Tensor, bits: int, dim: int) -> Tensor:
    """Return non-negative numbers packed into int32 along `dim`, the first in the lowest bits."""
    import torch

    per = 32 // bits
    apart = values.to(torch.int64).unflatten(dim, (-1, per)).movedim(dim + 1, -1)
    whole = (apart << (torch.arange(per) * bits)).sum(-1)
    return (whole - ((whole >> 31) << 32)).to(torch.int32)


def packed(bits: int, group: int | None) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what writes compressed-tensors' format `pack-quantized`."""

    def write(weight: Tensor) -> dict[str, Tensor]:
        import torch

        values, scale = symmetric(weight, bits, group)
        return {"weight_packed": pack(values + 2 ** (bits - 1), bits, 1), "weight_scale": scale.to(torch.bfloat16),
                "weight_shape": torch.tensor(weight.shape)}  # fmt: skip

    return write


def int8(weight: Tensor) -> dict[str, Tensor]:
    """Write compressed-tensors' format `int-quantized`."""
    import torch

    values, scale = symmetric(weight, 8, None)
    return {"weight": values.to(torch.int8), "weight_scale": scale.to(torch.bfloat16)}


def fp8(weight: Tensor) -> dict[str, Tensor]:
    """Write compressed-tensors' format `float-quantized`, a scale a row."""
    import torch

    scale = (weight.abs().amax(1, keepdim=True) / 448).to(torch.bfloat16)
    return {"weight": (weight / scale.float()).to(torch.float8_e4m3fn), "weight_scale": scale}


def fp8_tensor(weight: Tensor) -> dict[str, Tensor]:
    """Write vLLM's own fp8 checkpoints, a scale a tensor."""
    import torch

    scale = weight.abs().amax() / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale.to(torch.float32)}


def fp8_blocks(weight: Tensor) -> dict[str, Tensor]:
    """Write what DeepSeek and Qwen publish: a scale for each block of 128 by 128."""
    import torch

    scale = torch.ones([-(-size // 128) for size in weight.shape])
    spread = scale.clone()
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            block = weight[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            spread[row, column] = block.abs().amax() / 448
    wide = spread.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    return {"weight": (weight / wide).to(torch.float8_e4m3fn), "weight_scale_inv": spread}


def awq(weight: Tensor) -> dict[str, Tensor]:
    """Write AutoAWQ's format `gemm`: 4 bits with zero points, everything transposed."""
    import torch

    rows, columns = weight.shape
    grouped = weight.view(rows, -1, GROUP)
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low).clamp(min=1e-5) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    values = ((grouped / scale).round() + zero).clamp(0, 15).view(rows, columns)

    def ordered(matrix: Tensor) -> Tensor:
        return matrix.t().unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)

    return {"qweight": pack(ordered(values), 4, 1), "qzeros": pack(ordered(zero.squeeze(-1)), 4, 1),
            "scales": scale.squeeze(-1).t().to(torch.float16)}  # fmt: skip


def gptq(weight: Tensor) -> dict[str, Tensor]:
    """Write AutoGPTQ's format, symmetric: its zero points are stored less one."""
    import torch

    values, scale = symmetric(weight, 4, GROUP)
    zeros = torch.full((scale.shape[1], scale.shape[0]), 7)
    return {"qweight": pack((values + 8).t(), 4, 0), "qzeros": pack(zeros, 4, 1), "scales": scale.t().half(),
            "g_idx": (torch.arange(weight.shape[1]) // GROUP).to(torch.int32)}  # fmt: skip


def _compressed(format: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: A002
    base = {"type": "int", "symmetric": True, "dynamic": False, "actorder": None, "block_structure": None}
    token = base | {"strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": base | weights, "output_activations": None,
             "input_activations": None if inputs is None else token | inputs}  # fmt: skip
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group},
            "ignore": ["lm_head"], "quantization_status": "compressed", "kv_cache_scheme": None,
            "global_compression_ratio": None}  # fmt: skip


FORMATS: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]] = {
    "ct-w8a16": (packed(8, None), _compressed("pack-quantized", {"num_bits": 8, "strategy": "channel"})),
    "ct-w4a16": (packed(4, GROUP), _compressed("pack-quantized", {"num_bits": 4, "strategy": "group",
                                                                  "group_size": GROUP})),
    "ct-w8a8": (int8, _compressed("int-quantized", {"num_bits": 8, "strategy": "channel"}, {"num_bits": 8})),
    "ct-fp8": (fp8, _compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"},
                                {"num_bits": 8, "type": "float"})),
    "fp8": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8-blocks": (fp8_blocks, {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                                "weight_block_size": [128, 128]}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm",
                  "modules_to_not_convert": None}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
                    "lm_head": False}),
}  # fmt: skip
"""How each format is written, and what `quantization_config` says of it."""
