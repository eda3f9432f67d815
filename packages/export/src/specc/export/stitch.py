"""The stage `stitched`: a verifier's checkpoint with its MTP head replaced by the trained one.

The head's tensors keep their files, places, shapes and dtypes: a file that has some of them is copied and their bytes
are written over, so that nothing else in it moves, its header included. All other files are the verifier's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from specc.core.algorithms.mtp import Piece, pieces
from specc.core.errors import Exit, SpeccError
from specc.core.files import (
    TensorHeader,
    link_or_copy,
    pretty,
    sha256_file,
    tensor_headers,
    tensors_start,
    write_atomic,
)
from specc.core.stage import Stage
from specc.core.verifiers import EMBEDDING, tensor_files
from specc.export.layout import DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX: Final = "model.safetensors.index.json"
ADDED: Final = "model-mtp.safetensors"
"""File of a head that the verifier's configuration promises and its checkpoint lacks."""
TORCH: Final[Mapping[str, str]] = {short: name for name, short in DTYPES.items()}
"""torch's names of safetensors' dtypes."""


@dataclass(slots=True)
class Difference:
    """What `stitched.json` says: the tensors that changed, those that are new, and the digests of all files."""

    changed: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    added: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rewritten: list[str] = field(default_factory=list[str])


def stitched(stage: Stage) -> None:
    """Write a whole Hugging Face checkpoint, and `stitched.json` beside it.

    Inputs are `checkpoint`, of the algorithm `mtp`, and `verifier`. Raises `SpeccError` for a head that does not fit
    the verifier's: another name, shape, or a dtype that is not a float's; and for a verifier without one.
    """
    verifier, config = stage.input("verifier"), stage.params["verifier"]["config"]
    files = tensor_files(verifier)
    tensors = _tensors(stage.input("checkpoint") / "model.safetensors")
    parts = {
        piece.name: (piece, _part(tensors[name], piece))
        for name, several in pieces(config, files.keys()).items()
        for piece in several
    }
    missing = sorted(parts.keys() - files.keys())
    if missing and not config.get("num_nextn_predict_layers"):
        raise SpeccError(
            f"the verifier has no tensor `{missing[0]}`, and its configuration says of no MTP layers",
            where=str(verifier),
            hint="take a verifier that has an MTP head: without one vLLM does not look for it",
            code=Exit.STAGE,
        )
    headed = {files[name].name for name in parts if name in files}
    found, everything = Difference(), sorted(path.name for path in verifier.iterdir() if path.is_file())
    for number, name in enumerate(everything):
        stage.progress(number, len(everything), "files", name)
        if name in headed:
            _rewrite(verifier / name, stage.output / name, parts, found)
        elif not (name == INDEX and missing):
            link_or_copy(verifier / name, stage.output / name)
    if missing:
        _add(verifier, stage.output, {name: parts[name][1] for name in missing}, found)
    write_atomic(stage.output / "stitched.json", pretty(_report(stage.output, found)))
    stage.progress(len(everything), len(everything), "files", "written")


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _part(tensor: Tensor, piece: Piece) -> Tensor:
    """Return what a piece holds of one of the format's tensors."""
    whole = tensor if piece.expert is None else tensor[piece.expert]
    return whole[slice(*piece.rows)] if piece.rows else whole


def _rewrite(source: Path, target: Path, parts: Mapping[str, tuple[Piece, Tensor]], found: Difference) -> None:
    """Copy a file and write over its tensors of the head."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        start = tensors_start(file)
        for header in tensor_headers(source):
            if header.name not in parts:
                continue
            piece, tensor = parts[header.name]
            _check(header, piece, source)
            file.seek(start + header.start)
            before = _values(file.read(header.end - header.start), header)
            after = _cast(tensor, header)
            file.seek(start + header.start)
            file.write(_bytes(after))
            found.changed.append({"file": target.name, **_change(header, before, after)})
    found.rewritten.append(target.name)


def _add(verifier: Path, output: Path, tensors: Mapping[str, Tensor], found: Difference) -> None:
    """Write a file of tensors that the verifier lacks, and an index that has them, too."""
    from safetensors.torch import save_file

    if (verifier / ADDED).exists():
        raise SpeccError(f"the verifier has a file `{ADDED}`, and not the whole head in it", where=str(verifier),
                         hint="its files are not of one model", code=Exit.STAGE)  # fmt: skip
    files = tensor_files(verifier)
    # As the embeddings, which the head reads: vLLM casts all of a model to one dtype anyway.
    embedding = next(name for name in EMBEDDING if name in files)
    kind = next(header.dtype for header in tensor_headers(files[embedding]) if header.name == embedding)
    headers = {name: TensorHeader(name, kind, tuple(tensor.shape), 0, 0) for name, tensor in tensors.items()}
    for header in headers.values():
        _check(header, Piece(header.name, header.shape), verifier)
    save_file({name: _cast(tensor, headers[name]) for name, tensor in tensors.items()}, output / ADDED)
    path = verifier / INDEX
    index: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"metadata": {}}
    weights = {name: file.name for name, file in files.items()} | dict.fromkeys(tensors, ADDED)
    sizes = (max(header.end for header in tensor_headers(file)) for file in {*files.values(), output / ADDED})
    index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes)}
    write_atomic(output / INDEX, pretty({**index, "weight_map": weights}))
    found.added += [
        {"file": ADDED, "name": name, "dtype": header.dtype, "shape": list(header.shape)}
        for name, header in sorted(headers.items())
    ]
    found.rewritten += [ADDED, INDEX]


def _check(header: TensorHeader, piece: Piece, path: Path) -> None:
    if header.shape != piece.shape or header.dtype not in TORCH:
        raise SpeccError(
            f"the verifier's tensor `{header.name}` is {list(header.shape)} of {header.dtype}, and the trained one"
            f" {list(piece.shape)}",
            where=str(path),
            hint=f"a head of {', '.join(TORCH)} can be replaced; a quantised one cannot",
            code=Exit.STAGE,
        )


def _cast(tensor: Tensor, header: TensorHeader) -> Tensor:
    """Return a tensor in the verifier's dtype; raises `SpeccError` where that cannot hold it."""
    cast = tensor.to(_dtype(header)).contiguous()
    if not bool(cast.isfinite().all()):
        raise SpeccError(f"`{header.name}` has values that are not finite in the verifier's {header.dtype}",
                         hint="lower `train.optimizer.learning_rate`", code=Exit.STAGE)  # fmt: skip
    return cast


def _dtype(header: TensorHeader) -> torch.dtype:
    import torch

    return getattr(torch, TORCH[header.dtype])


def _values(data: bytes, header: TensorHeader) -> Tensor:
    import torch

    return torch.frombuffer(bytearray(data), dtype=_dtype(header)).view(header.shape)


def _bytes(tensor: Tensor) -> bytes:
    import torch

    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def _change(header: TensorHeader, before: Tensor, after: Tensor) -> dict[str, Any]:
    """Return what `stitched.json` says of a tensor; norms are of fp64 values."""
    one, two = before.double(), after.double()
    change, norm = (two - one).abs(), float(one.norm())
    return {
        "name": header.name,
        "dtype": header.dtype,
        "shape": list(header.shape),
        "elements": before.numel(),
        "changed_elements": int((before != after).sum()),
        "relative_change": float(change.norm()) / norm if norm else None,
        "largest_change": float(change.max()),
    }


def _report(output: Path, found: Difference) -> dict[str, Any]:
    files = {path.name: sha256_file(path) for path in sorted(output.iterdir()) if path.is_file()}
    return {
        "changed": sorted(found.changed, key=lambda one: one["name"]),
        "added": found.added,
        "files": {
            "unchanged": {name: digest for name, digest in files.items() if name not in found.rewritten},
            "rewritten": {name: digest for name, digest in files.items() if name in found.rewritten},
        },
    }
