"""A source's weights, from safetensors or from PyTorch's pickles, of which nothing is believed or run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

from specc.core.errors import SpeccError
from specc.core.files import tensor_headers
from specc.core.layouts.assign import SLACK

if TYPE_CHECKING:
    from torch import Tensor

PICKLE: Final = "data.pkl"
DTYPES: Final = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""safetensors' names of the dtypes whose values are what they say; others have scales beside them."""


class Weights:
    """The tensors of a source's files: their shapes by name at once, and each one when it is asked for."""

    def __init__(self, files: Sequence[Path], bound: int, check: Callable[[Path], None]) -> None:
        """Look into safetensors, or load pickles of at most `bound` bytes; raises `SpeccError` for what is neither.

        `check` raises for a file that is not the one that is meant; it is asked before anything in it is believed.
        """
        self._files: dict[str, Path] = {}
        self._loaded: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        pickles = [path for path in files if path.suffix != ".safetensors"]
        _check_sizes(pickles, bound)
        for path in files:
            check(path)
            if path not in pickles:
                self._headers(path)
        for path in pickles:
            for name, tensor in _load(path).items():
                self._claim(name, tuple(tensor.shape), path)
                self._loaded[name] = tensor

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in a memory of its own: a file's may be aligned to 8 bytes only."""
        if name in self._loaded:
            return self._loaded[name].contiguous().clone()
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name).clone()

    def said(self) -> list[str]:
        """Return the names of all tensors but biases of zeros, which say nothing."""
        return [name for name in self.shapes if not name.endswith(".bias") or bool(self.tensor(name).any())]

    def _headers(self, path: Path) -> None:
        for header in tensor_headers(path):
            if header.dtype not in DTYPES:
                raise SpeccError(f"the source's tensor `{header.name}` is of dtype {header.dtype}",
                                 where=path.name, hint="convert the draft before it was quantised")  # fmt: skip
            self._claim(header.name, header.shape, path)

    def _claim(self, name: str, shape: tuple[int, ...], path: Path) -> None:
        if name in self._files:
            raise SpeccError(f"the source's tensor `{name}` is in `{self._files[name].name}` and in `{path.name}`",
                             hint="remove the file that is not of the draft")  # fmt: skip
        self._files[name], self.shapes[name] = path, shape


def _check_sizes(paths: Sequence[Path], bound: int) -> None:
    """Raise `SpeccError` for pickles that hold more than `bound` bytes, or would when they are unpacked."""
    size = sum(path.stat().st_size for path in paths)
    if size > bound:
        raise SpeccError(
            f"the source's pickles have {size:,} bytes, and weights of such a draft have {bound:,} at most",
            where=paths[0].name,
            hint="its `config.json` says how many weights there are; what else is in the file is not looked at",
        )
    for path in paths:
        _check_zip(path, bound)


def _check_zip(path: Path, bound: int) -> None:
    """Raise `SpeccError` unless a file is what `torch.save` writes since PyTorch 1.6: an archive, nothing packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise SpeccError("not in the form that `torch.save` writes since PyTorch 1.6", where=path.name,
                         hint="save it again with a newer PyTorch, in a place that you trust") from error  # fmt: skip
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    program = sum(member.file_size for member in members if member.filename.endswith(PICKLE))
    if packed or program > SLACK or sum(member.file_size for member in members) > bound:
        raise SpeccError("an archive that unpacks to more than it is, as `torch.save` writes none", where=path.name,
                         hint="take the file from where it was published")  # fmt: skip


def _load(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a pickle; raises `SpeccError` if it holds anything else, of which nothing is run."""
    import torch

    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        first = next((line for line in str(error).splitlines() if "GLOBAL" in line.upper()), "").strip()
        raise SpeccError(
            f"the pickle holds more than tensors, and none of it was run{f': {first[:160]}' if first else ''}",
            where=path.name,
            hint="take the weights as safetensors, or from a source that you trust",
        ) from error
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, AttributeError, IndexError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise SpeccError(f"the pickle cannot be read: {first[:160]}", where=path.name,
                         hint="download it again") from error  # fmt: skip
    if not isinstance(found, dict):
        raise SpeccError("the pickle is not a table of tensors", where=path.name, hint="save its `state_dict()` alone")
    items: dict[Any, Any] = found
    for name, tensor in items.items():
        if not isinstance(name, str) or type(tensor) is not torch.Tensor or tensor.layout != torch.strided:
            raise SpeccError(f"the pickle's entry `{str(name)[:80]}` is no plain tensor", where=path.name,
                             hint="save its `state_dict()` alone")  # fmt: skip
        if tensor.is_quantized or tensor.is_complex() or tensor.element_size() * 8 not in (8, 16, 32, 64):
            raise SpeccError(f"the source's tensor `{name}` is of dtype {tensor.dtype}", where=path.name,
                             hint="convert the draft before it was quantised")  # fmt: skip
    return items
