"""A quantised verifier as a plain checkpoint: what stands for it where transformers, or fp32, is to run it.

transformers needs a library of its own for every method, and vLLM's kernels for quantised weights have no fp32. The
weights are those that the kernels multiply with, rounded once to the dtype; activations that a kernel rounds too
(`W8A8`, `FP8`) are not rounded here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.verifiers import tensor_files

INDEX: Final = "model.safetensors.index.json"
AWQ: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Places of eight columns among an int32's nibbles in AWQ, the lowest first."""
FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of E2M1 (OCP Microscaling Formats 1.0, table 5)."""


def write_dequantised(source: Path, target: Path, quantization: Mapping[str, Any], dtype: torch.dtype) -> Path:
    """Write the folder `source` anew, all weights in `dtype`, into the empty folder `target`, and return that.

    `quantization` is that of `verifier.config` of the resolved spec. Each file of weights becomes one of the same name.
    Raises `SpeccError` if there are no quantised weights of that method.
    """
    target.mkdir(parents=True, exist_ok=True)
    files, method = tensor_files(source), _METHODS[quantization["method"]]
    stems = {
        name: name.removesuffix(end)
        for name in files
        for end in method.ends
        if name.endswith(end) and any(name.removesuffix(end) + scale in files for scale in method.scales)
    }
    if not stems:
        raise SpeccError(f"the verifier has no weights as `{quantization['method']}` writes them", where=str(source),
                         hint="its `config.json` and its weights are not of one model", code=Exit.STAGE)  # fmt: skip
    parts = {stem + end for stem in stems.values() for end in (*method.scales, *method.others)}
    weight_map: dict[str, str] = {}
    with ExitStack() as stack:
        opened = {path: stack.enter_context(safe_open(path, framework="pt")) for path in sorted({*files.values()})}

        def read(name: str) -> Tensor:
            return opened[files[name]].get_tensor(name)

        for path in opened:
            written: dict[str, Tensor] = {}
            for name in sorted(one for one, place in files.items() if place == path):
                if (stem := stems.get(name)) is not None:
                    weight = method.read(_Parts(read, files, stem))
                    written[stem + method.plain] = weight.to(dtype).contiguous()
                elif name not in parts:
                    tensor = read(name)
                    written[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor.clone()
            if written:
                save_file(written, target / path.name, metadata={"format": "pt"})
                weight_map |= dict.fromkeys(written, path.name)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (INDEX, "config.json"):
            shutil.copyfile(path, target / path.name)
    if len({*weight_map.values()}) > 1:
        write_atomic(target / INDEX, pretty({"metadata": {}, "weight_map": weight_map}))
    write_atomic(target / "config.json", pretty(_plain(json.loads((source / "config.json").read_text()), dtype)))
    return target


def _plain(raw: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a `config.json` that says of no quantisation."""
    said = {key: value for key, value in raw.items() if key not in ("quantization_config", "compression_config")}
    if isinstance(said.get("text_config"), dict):
        said["text_config"] = _plain(said["text_config"], dtype)
    return said | {"dtype": str(dtype).removeprefix("torch.")}


class _Parts:
    """The tensors of one quantised weight, by the ends of their names."""

    def __init__(self, read: Callable[[str], Tensor], files: Mapping[str, Path], stem: str) -> None:
        self._read, self._files, self._stem = read, files, stem

    def __contains__(self, end: str) -> bool:
        return self._stem + end in self._files

    def __getitem__(self, end: str) -> Tensor:
        return self._read(self._stem + end)


def unpack(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Return the non-negative numbers in int32 words along `dim`, those in the lowest bits first, as int64."""
    shifts = torch.arange(0, 32, bits)
    apart = (packed.to(torch.int64).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return apart.movedim(-1, dim + 1).flatten(dim, dim + 1)


def _gptq(parts: _Parts) -> Tensor:
    """AutoGPTQ: words of input rows, zero points stored less one, `g_idx` the group of each input."""
    scales, qweight = parts["scales"].float(), parts["qweight"]  # [groups, out], [in / per, out]
    bits = 32 * parts["qzeros"].shape[1] // scales.shape[1]
    values = unpack(qweight, bits, 0)  # [in, out]
    zeros = unpack(parts["qzeros"], bits, 1) + 1  # [groups, out]
    rows = torch.arange(len(values)) // (len(values) // len(scales))
    group = parts["g_idx"].long() if "g_idx" in parts else rows
    return ((values - zeros[group]).float() * scales[group]).t()


def _awq(parts: _Parts) -> Tensor:
    """AutoAWQ's `gemm`: words of output columns, whose nibbles have an order of their own."""

    def ordered(packed: Tensor) -> Tensor:
        return unpack(packed, 4, 1).unflatten(1, (-1, 8))[:, :, list(AWQ)].flatten(1)

    scales = parts["scales"].float()  # [groups, out]
    values, zeros = ordered(parts["qweight"]), ordered(parts["qzeros"])  # [in, out], [groups, out]
    group = torch.arange(len(values)) // (len(values) // len(scales))
    return ((values - zeros[group]).float() * scales[group]).t()


def _compressed(parts: _Parts) -> Tensor:
    """Return a weight of compressed-tensors: packed into words of input columns, or of a dtype of 8 bits."""
    scale = parts["weight_scale"].float()
    if "weight" in parts:
        return _scaled(parts["weight"], scale)
    rows, columns = parts["weight_shape"].tolist()
    packed = parts["weight_packed"]
    bits = 32 * packed.shape[1] // columns
    values = unpack(packed, bits, 1)[:, :columns]
    group = parts["weight_g_idx"].long() if "weight_g_idx" in parts else (
        torch.arange(columns) // -(-columns // scale.shape[1])
    )  # fmt: skip
    zero = torch.full_like(scale, 2.0 ** (bits - 1))
    if "weight_zero_point" in parts:  # packed along the rows
        zero = unpack(parts["weight_zero_point"], bits, 0)[:rows].float()
    return (values.float() - zero[:, group]) * scale[:, group]


def _fp8(parts: _Parts) -> Tensor:
    """fp8 with a scale a tensor, or one a block, which is called an inverse though it multiplies."""
    scale = parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"]
    return _scaled(parts["weight"], scale.float())


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Return a weight `[out, in]` times its scale: one number, one a row, or one a block of equal sizes."""
    if scale.numel() == 1 or scale.shape == (len(weight), 1):
        return weight.float() * scale.reshape(-1, 1)
    if scale.dim() == 1:
        return weight.float() * scale[:, None]
    sizes = [_block(size, count) for size, count in zip(weight.shape, scale.shape, strict=True)]
    wide = scale.repeat_interleave(sizes[0], 0).repeat_interleave(sizes[1], 1)
    return weight.float() * wide[: weight.shape[0], : weight.shape[1]]


def _block(size: int, count: int) -> int:
    """Return the side of a block: the one power of two with which it takes so many of them to cover a size."""
    least = -(-size // count)
    return 1 << (least - 1).bit_length()


def _mxfp4(parts: _Parts) -> Tensor:
    """gpt-oss: experts `[expert, out, groups, 16 bytes]` of two E2M1 each, the low one first, scales of E8M0."""
    blocks = parts["_blocks"].long()
    values = torch.tensor(FP4)[torch.stack((blocks & 15, blocks >> 4), -1)].flatten(-2)  # [expert, out, groups, 32]
    exponents = parts["_scales"].int() - 127  # [expert, out, groups]
    weight = torch.ldexp(values, exponents.unsqueeze(-1)).flatten(-2)  # [expert, out, in]
    return weight.transpose(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Method:
    """How a method names the tensors of a weight: each name ends with one of these.

    `ends` are those of the tensor that the others belong to, `scales` those of what makes it a quantised one, `others`
    those of what may be there besides, and `plain` that of the weight which stands for them all.
    """

    read: Callable[[_Parts], Tensor]
    ends: tuple[str, ...]
    scales: tuple[str, ...]
    others: tuple[str, ...] = ()
    plain: str = "weight"


_METHODS: Final[Mapping[str, _Method]] = {
    "awq": _Method(read=_awq, ends=("qweight",), scales=("scales",), others=("qzeros",)),
    "compressed-tensors": _Method(
        read=_compressed,
        ends=("weight_packed", "weight"),
        scales=("weight_scale",),
        others=("weight_shape", "weight_zero_point", "weight_g_idx", "input_scale", "input_zero_point"),
    ),
    "fp8": _Method(read=_fp8, ends=("weight",), scales=("weight_scale", "weight_scale_inv"), others=("input_scale",)),
    "gptq": _Method(read=_gptq, ends=("qweight",), scales=("scales",), others=("qzeros", "g_idx")),
    "mxfp4": _Method(read=_mxfp4, ends=("_blocks",), scales=("_scales",), plain=""),
}
