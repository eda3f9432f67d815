"""A GGUF file as a plain checkpoint: the weights of its tensors, and the configuration beside them.

Everything is written here rather than by `save_pretrained`, which would add versions and local switches. gguf
dequantises with numpy, products and sums of 32-bit floats one by one, so the bytes are the same on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from specc.core.errors import Exit, SpeccError
from specc.core.files import atomic, pretty, write_atomic
from specc.core.gguf import GgufHeader, GgufTensor

MAX_SHARD: Final = 2 << 30
"""Bytes of a weight file, and of the memory that writing it takes."""
ROWS: Final = 1 << 14
"""Rows that are dequantised at once."""
BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}

Weights = NDArray[Any]


def write_model(
    source: Path,
    target: Path,
    *,
    header: GgufHeader,
    config: Mapping[str, Any],
    dtype: str,
    done: Callable[[int], None],
) -> None:
    """Write `config.json`, `generation_config.json` and the weights in `dtype` into the folder `target`.

    `config` is `verifier.config` of the resolved spec; `done` is called with the number of weights so far. Raises
    `SpeccError` if the file has other tensors than its architecture, or a type that gguf cannot dequantise.
    """
    tensors = {_hf_name(tensor.name): tensor for tensor in header.tensors}
    _check(tensors, config, source)
    write_atomic(target / "config.json", pretty(_config(header, config, dtype)))
    write_atomic(target / "generation_config.json", pretty(_token_ids(header, config)))
    shards = _shards(tensors, BYTES[dtype])
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    data = np.memmap(source, np.uint8, "r")
    written = 0
    for file, members in zip(names, shards, strict=True):
        weights: dict[str, Weights] = {}
        for name in members:
            weights[name] = _as_dtype(_weights(data, name, tensors[name], config), dtype, name)
            written += weights[name].nbytes
            done(written // BYTES[dtype])
        specs = {
            name: TensorSpec(dtype=dtype, shape=tensors[name].shape, data_ptr=array.ctypes.data, data_len=array.nbytes)
            for name, array in weights.items()
        }
        with atomic(target / file) as temporary:
            serialize_file(specs, temporary)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": written},
            "weight_map": {name: file for file, members in zip(names, shards, strict=True) for name in members},
        }
        write_atomic(target / "model.safetensors.index.json", pretty(index))


_OUTER: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of a layer's tensors (`blk.7.attn_q.weight`), and those of Hugging Face."""


def _hf_name(name: str) -> str:
    """Return a tensor's Hugging Face name, or its own if it has none there."""
    match name.split("."):
        case ["blk", layer, part, suffix] if part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.{suffix}"
        case _:
            return _OUTER.get(name, name)


def _expected(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor of a model of these dimensions."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head, family = config["head_dim"], config["model_type"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows in (("q", query), ("k", key), ("v", key)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, hidden)
            if family == "qwen2":
                yield f"{at}self_attn.{name}_proj.bias", (rows,)
            if family == "qwen3" and name != "v":
                yield f"{at}self_attn.{name}_norm.weight", (head,)
        yield f"{at}self_attn.o_proj.weight", (hidden, query)
        yield f"{at}mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}mlp.up_proj.weight", (inner, hidden)
        yield f"{at}mlp.down_proj.weight", (hidden, inner)
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)


def _check(tensors: Mapping[str, GgufTensor], config: Mapping[str, Any], source: Path) -> None:
    """Hold the file's tensors against those that the architecture computes with, neither more nor fewer."""
    expected, found = dict(_expected(config)), {name: tensor.shape for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise SpeccError(
            f"the GGUF file has a tensor `{tensors[name].name if name in tensors else name}` of shape"
            f" {list(found[name]) if name in found else 'none'}, and its architecture needs"
            f" {list(expected[name]) if name in expected else 'none'}",
            where=source.name,
            hint="name the model's folder with safetensors instead",
            code=Exit.STAGE,
        )


def _shards(tensors: Mapping[str, GgufTensor], width: int) -> list[list[str]]:
    """Deal the tensors, sorted by name, into files of at most `MAX_SHARD` bytes, a larger tensor into its own."""
    shards, room = list[list[str]](), 0
    for name in sorted(tensors):
        size = math.prod(tensors[name].shape) * width
        if size > room:
            shards.append([])
            room = MAX_SHARD
        shards[-1].append(name)
        room -= size
    return shards


def _weights(data: NDArray[np.uint8], name: str, tensor: GgufTensor, config: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return a tensor as 32-bit floats in Hugging Face's order."""
    kind, packed = _packed(data, tensor)  # [rows, bytes]
    found = np.empty((len(packed), tensor.shape[-1]), np.float32)
    try:
        for start in range(0, len(packed), ROWS):
            found[start : start + ROWS] = dequantize(np.ascontiguousarray(packed[start : start + ROWS]), kind)
    except NotImplementedError as error:
        raise _undone(tensor, str(error)) from error
    if config["model_type"] == "llama" and ".self_attn.q_proj." in name:
        found = _unpermuted(found, config["num_attention_heads"])
    if config["model_type"] == "llama" and ".self_attn.k_proj." in name:
        found = _unpermuted(found, config["num_key_value_heads"])
    return found.reshape(tensor.shape)


def _packed(data: NDArray[np.uint8], tensor: GgufTensor) -> tuple[GGMLQuantizationType, NDArray[np.uint8]]:
    """Return a tensor's type and its bytes `[rows, bytes]`, a row being its innermost dimension."""
    if tensor.kind not in {kind.value for kind in GGML_QUANT_SIZES}:
        raise _undone(tensor, f"its type {tensor.kind} is unknown")
    kind = GGMLQuantizationType(tensor.kind)
    block, size = GGML_QUANT_SIZES[kind]
    *outer, inner = tensor.shape
    rows, columns = math.prod(outer), inner // block * size
    if inner % block:
        raise _undone(tensor, f"{inner} columns are no multiple of {block}")
    if tensor.start + rows * columns > len(data):
        raise _undone(tensor, "the file is cut short")
    return kind, data[tensor.start : tensor.start + rows * columns].reshape(rows, columns)


def _undone(tensor: GgufTensor, why: str) -> SpeccError:
    return SpeccError(
        f"tensor `{tensor.name}` of the GGUF file cannot be dequantised: {why}",
        hint="download the file again, or name the model's folder with safetensors",
        code=Exit.STAGE,
    )


def _unpermuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows in Hugging Face's order: rotary pairs (i, i + d/2) of each head, not neighbours (2i, 2i + 1).

    in a file, one head of 6 rows    0 3 1 4 2 5
    here                             0 1 2 3 4 5
    """
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _as_dtype(weights: NDArray[np.float32], dtype: str, name: str) -> Weights:
    """Return `weights` rounded to nearest even; bfloat16, which numpy does not know, as its 16 bits.

    Raises `SpeccError` if there is a value that is not finite, before or after.
    """
    with np.errstate(over="ignore"):
        rounded = weights.astype(np.float16) if dtype == "float16" else np.ascontiguousarray(weights)
    if not np.isfinite(rounded).all():
        raise SpeccError(f"tensor `{name}` has values that `{dtype}` cannot hold", code=Exit.STAGE)
    if dtype != "bfloat16":
        return rounded
    bits = rounded.view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def _config(header: GgufHeader, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return `config.json`: the pinned facts, and what llama.cpp's converters take for granted."""
    family = config["model_type"]
    extras: dict[str, Any] = {} if family == "qwen2" else {"attention_bias": False}
    if family == "llama":
        extras |= {"mlp_bias": False, "pretraining_tp": 1}
    else:
        extras |= {"use_sliding_window": False}
    facts = {key: value for key, value in config.items() if key not in ("architecture", "eos_token_ids")}
    return {
        **facts,
        **extras,
        **_token_ids(header, config),
        "architectures": [config["architecture"]],
        "attention_dropout": 0.0,
        "dtype": dtype,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _token_ids(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    ends = config["eos_token_ids"]
    return {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }
