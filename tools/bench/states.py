"""Ways to write hidden states without loss, each with its size and its speed: `make bench-datagen` has the table.

A candidate is given what the stage writes at once, one layer of one row in the verifier's dtype, and gives it back.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zstandard
from safetensors import safe_open
from torch import Tensor

from specc.datagen.encoding import StatesFile, compressor
from specc.train.states import Format

ROUNDS = 3


@dataclass(frozen=True)
class Candidate:
    """A coder of bytes, and which bytes it is given: those of whole numbers, or of exponents alone.

    `relative` takes each channel's commonest exponent in the row away from its exponents first.
    """

    code: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]
    apart: bool = True
    relative: bool = False


def _zstd(level: int, **options: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    parameters = zstandard.ZstdCompressionParameters.from_level(level, **options)
    return zstandard.ZstdCompressor(compression_params=parameters).compress, zstandard.ZstdDecompressor().decompress


def _zlib(level: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    return lambda data: zlib.compress(data, level), zlib.decompress


def _huffman(data: bytes) -> bytes:
    coder = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


ours = (compressor().compress, zstandard.ZstdDecompressor().decompress)
CANDIDATES = {
    "as they are": Candidate(bytes, bytes, apart=False),
    "zstd 1 of the numbers": Candidate(*_zstd(1), apart=False),
    "zlib 1 of the exponents": Candidate(*_zlib(1)),
    "zlib 6 of the exponents": Candidate(*_zlib(6)),
    "zlib's Huffman coder of the exponents": Candidate(_huffman, zlib.decompress),
    "zstd 1 of the exponents": Candidate(*_zstd(1)),
    "zstd 3 of the exponents": Candidate(*_zstd(3)),
    "zstd 9 of the exponents": Candidate(*_zstd(9)),
    "zstd's Huffman coder of the exponents": Candidate(*ours),
    "the same, relative to the channel's": Candidate(*ours, relative=True),
}


def encoded(candidate: Candidate, states: Tensor) -> list[bytes]:
    """Encode one layer of a row, `[tokens, hidden]` of 16 bits."""
    numbers = states.contiguous().view(torch.int16).numpy().view(np.uint16)
    if not candidate.apart:
        return [candidate.code(numbers.tobytes())]
    rotated = (numbers << 1) | (numbers >> 15)
    high = (rotated >> 8).astype(np.uint8)
    parts = [rotated.astype(np.uint8).tobytes()]
    if candidate.relative:
        usual = np.median(high, axis=0).astype(np.uint8)
        high -= usual
        parts.append(usual.tobytes())
    return [*parts, candidate.code(high.tobytes())]


def decoded(candidate: Candidate, parts: Sequence[bytes], like: Tensor) -> Tensor:
    """Decode what `encoded` made of a tensor like this one."""
    whole = np.frombuffer(candidate.decode(parts[-1]), np.uint16 if not candidate.apart else np.uint8)
    whole = whole.reshape(like.shape)
    if candidate.apart:
        if candidate.relative:
            whole = whole + np.frombuffer(parts[1], np.uint8)
        rotated = (whole.astype(np.uint16) << 8) | np.frombuffer(parts[0], np.uint8).reshape(like.shape)
        whole = (rotated >> 1) | (rotated << 15)
    return torch.from_numpy(whole.copy().view(np.int16)).view(like.dtype)


def measure(rows: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Return `size` (a share of the states' own), `write` and `read` (MB of states a second) of every candidate.

    `rows` are bf16 or fp16 `[tokens, layers, hidden]`. The stage's own file is among them, as `the file`.
    """
    parts = [row[:, layer].contiguous() for row in rows for layer in range(row.shape[1])]
    size = sum(part.nbytes for part in parts)
    found: dict[str, dict[str, float]] = {}
    for name, candidate in CANDIDATES.items():
        writes, reads, bytes_written = list[float](), list[float](), 0
        for _ in range(ROUNDS):
            began = time.perf_counter()
            blocks = [encoded(candidate, part) for part in parts]
            writes.append(time.perf_counter() - began)
            began = time.perf_counter()
            back = [decoded(candidate, block, part) for block, part in zip(blocks, parts, strict=True)]
            reads.append(time.perf_counter() - began)
            assert all(torch.equal(one, part) for one, part in zip(back, parts, strict=True)), name
            bytes_written = sum(len(one) for block in blocks for one in block)
        found[name] = _row(bytes_written, size, writes, reads)
    return found | {"the file": _file(rows, size)}


def _file(rows: Sequence[Tensor], size: int) -> dict[str, float]:
    """Return the same of a shard that the stage's writer writes and the trainer's reader reads, row by row."""
    layers, hidden = rows[0].shape[1:]
    reader = Format(range(layers), hidden, rows[0].dtype)
    writes, reads = list[float](), list[float]()
    with TemporaryDirectory() as name:
        path = Path(name) / "shard.safetensors"
        for _ in range(ROUNDS):
            began = time.perf_counter()
            with StatesFile(path, len(rows), layers) as file:
                for row in rows:
                    file.add(row)
            writes.append(time.perf_counter() - began)
            began = time.perf_counter()
            with safe_open(path, "pt") as shard:
                back = [reader.read(shard, number, len(row)) for number, row in enumerate(rows)]
            reads.append(time.perf_counter() - began)
            assert all(torch.equal(one, row) for one, row in zip(back, rows, strict=True))
        return _row(path.stat().st_size, size, writes, reads)


def _row(written: int, size: int, writes: Sequence[float], reads: Sequence[float]) -> dict[str, float]:
    return {"size": round(written / size, 4), "write": round(size / 1e6 / min(writes)),
            "read": round(size / 1e6 / min(reads))}  # fmt: skip
