"""How hidden states are written: without loss, the exponents of their numbers compressed apart from the rest.

Of a floating-point number of a network the exponent is predictable, and sign and mantissa are not: in bf16 8 of 16 bits
hold less than 3 bits of information. So each number is rotated left by one bit, which brings the exponent into its
highest byte; that byte of all numbers of a layer is coded by zstd, and the others are written as they are. zstd is
told to look for no repetitions, of which there are none but by chance: what is left of it is its Huffman coder.

ZipNN (https://arxiv.org/abs/2411.05239) separates the bytes of weights in the same way.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
import zstandard
from torch import Tensor

ENCODING: Final = "exponents-zstd"
"""What `index.json` calls this."""
HEADER: Final = 8 * 63
"""Bytes of a file's header, which is written before the sizes in it are known; filled up with spaces."""
WORDS: Final = {2: torch.int16, 4: torch.int32}


def compressor() -> zstandard.ZstdCompressor:
    """Return zstd with its fastest coder and a table for repetitions that is too small to find any."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, min_match=7, hash_log=6)
    return zstandard.ZstdCompressor(compression_params=parameters)


def encode(states: Tensor, coder: zstandard.ZstdCompressor) -> bytes:
    """Return the block of one layer's states `[tokens, hidden]`, `coder` being a `compressor`.

    Bytes of rotated numbers, `[tokens, hidden]` of each: the lowest, the next and so on, as they are, and then a zstd
    frame of the highest.
    """
    width = states.element_size()
    numbers = states.view(WORDS[width]).numpy().view(f"<u{width}")
    rotated = (numbers << 1) | (numbers >> (8 * width - 1))
    planes = np.ascontiguousarray(rotated).view(np.uint8).reshape(*numbers.shape, width)
    *low, high = np.ascontiguousarray(np.moveaxis(planes, -1, 0))
    return b"".join((*(plane.tobytes() for plane in low), coder.compress(high.data)))


class StatesFile:
    """A shard of hidden states, written row by row; it is whole when the `with` that holds it is left.

    A safetensors file of `offsets` I64 `[rows * layers + 1]`, `tokens` I64 `[rows]` and `blocks` U8. Of row r its first
    `tokens[r]` are kept; the block of its layer l is `blocks[offsets[r * layers + l] : offsets[r * layers + l + 1]]`.
    """

    def __init__(self, path: Path, rows: int, layers: int) -> None:
        """Begin a shard of so many rows with so many layers each."""
        self._rows, self._layers = rows, layers
        self._offsets, self._tokens = [0], list[int]()
        self._coder, self._file = compressor(), path.open("wb")
        self._file.seek(len(self._head()))

    def add(self, states: Tensor) -> None:
        """Write the states of the next row that are to be kept, `[tokens, layers, hidden]`."""
        self._tokens.append(len(states))
        for layer in range(self._layers):
            size = self._file.write(encode(states[:, layer], self._coder)) if len(states) else 0
            self._offsets.append(self._offsets[-1] + size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._head())

    def _head(self) -> bytes:
        """Return what stands before the blocks: as long before they are written as after."""
        offsets, tokens = self._rows * self._layers + 1, self._rows
        start, size = 8 * (offsets + tokens), self._offsets[-1]
        entries = {
            "offsets": {"dtype": "I64", "shape": [offsets], "data_offsets": [0, 8 * offsets]},
            "tokens": {"dtype": "I64", "shape": [tokens], "data_offsets": [8 * offsets, start]},
            "blocks": {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]},
        }
        header = json.dumps(entries, separators=(",", ":")).encode().ljust(HEADER)
        numbers = np.zeros(offsets + tokens, "<i8")
        numbers[: len(self._offsets)] = self._offsets
        numbers[offsets : offsets + len(self._tokens)] = self._tokens
        return struct.pack("<Q", len(header)) + header + numbers.tobytes()
