"""Random drafts for small verifiers, made to the layout table, and jobs for the stages that read them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specc.core.algorithms import algorithm, vocabulary_of
from specc.core.contracts import Event, Input, StageJob, load_event
from specc.core.files import sha256_file

DIGEST = "0" * 64
EAGLE3: dict[str, Any] = {
    "algorithm": "eagle3", "layers": 1, "decoder": "llama", "vocabulary": 96, "norm_before_residual": True,
    "norm_before_fc": True, "fc_norm": False, "norm_output": True, "sliding_window": None, "intermediate_size": 128,
    "ttt": {"steps": 3, "decay": 1.0}, "init": None,
}  # fmt: skip


def verifier_config(folder: Path) -> dict[str, Any]:
    """Return `verifier.config` of the resolved spec for a Hugging Face folder of `small.make_verifier`."""
    raw = json.loads((folder / "config.json").read_text())
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
             "rope_parameters", "tie_word_embeddings", "bos_token_id")  # fmt: skip
    return {
        **{name: raw[name] for name in names},
        "architecture": raw["architectures"][0],
        "eos_token_ids": [raw["eos_token_id"]],
    }


def resolved(verifier: Path, **draft: Any) -> dict[str, Any]:
    """Return a resolved spec for a small verifier; `draft` overrides values of its draft section.

    A `draft` that names its algorithm is the whole section.
    """
    config = verifier_config(verifier)
    count = config["num_hidden_layers"]
    return {
        "version": 1,
        "name": f"small-{draft.get('algorithm', 'eagle3')}",
        "date": "2026-11-23",
        "verifier": {
            "model": "./small", "name": "small", "revision": None, "dtype": "bfloat16", "trust_remote_code": False,
            "format": "huggingface", "files": {"config.json": "1" * 64, "model.safetensors": "2" * 64},
            "tokenizer_sha256": "3" * 64, "chat_template_sha256": "4" * 64, "config": config,
        },
        "draft": draft
        if "algorithm" in draft
        else {**EAGLE3, "hidden_state_layers": [2, count // 2, count - 3], **draft},
        "data": {
            "sources": [{"file": "prompts/train.jsonl", "sha256": "5" * 64, "rows": None}], "system_prompt": None,
            "responses": {"from": "verifier", "temperature": 0.0, "top_p": 1.0, "max_tokens": 32, "seed": 0},
            "sequence_length": 128, "validation": {"share": 0.05, "sources": []}, "shuffle": True,
            "shuffle_window": 32, "shard_rows": 64,
        },
        "train": {
            "epochs": 2, "steps": None, "batch_tokens": 256,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8,
                          "weight_decay": 0.0},
            "schedule": {"name": "linear", "warmup": 0.01}, "loss": {"kl": 1.0}, "precision": "fp32",
            "gradient_clipping": 1.0, "zero": {"stage": 1, "offload": "none"}, "seed": 42,
        },
        "export": {"speculative_tokens": 3, "dtype": "bfloat16"},
        "evaluate": {"prompts": [], "max_tokens": 24, "lossless_prompts": 4},
        "stages": {"draft": {"version": 1, "key": "6" * 64, "inputs": {"verifier": "7" * 64}}},
    }  # fmt: skip


def write_draft(folder: Path, values: Mapping[str, Any], *, seed: int = 0) -> Path:
    """Write an artifact of the stage `draft` with random weights, other ones as the initial weights."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    layout = algorithm(values["draft"]["algorithm"]).layout(values["draft"], values["verifier"]["config"])
    for offset, name in enumerate(("model", "initial")):
        generator = torch.Generator().manual_seed(seed + offset)
        tensors = {
            spec.name: torch.rand(spec.shape, generator=generator) + 0.5
            if len(spec.shape) == 1
            else torch.randn(spec.shape, generator=generator) * 0.1
            for spec in layout
            if spec.origin == "trained"
        }
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def write_vocabulary(folder: Path, values: Mapping[str, Any], tokens: list[int] | None = None) -> Path | None:
    """Write an artifact of the stage `vocabulary`: `tokens`, or every third one; None for the full vocabulary."""
    import torch
    from safetensors.torch import save_file

    size = values["verifier"]["config"]["vocab_size"]
    small = vocabulary_of(values["draft"], values["verifier"]["config"])
    if small == size:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    chosen = torch.tensor(sorted(tokens)) if tokens else torch.arange(small) * (size // small)
    known = torch.zeros(size, dtype=torch.bool)
    known[chosen] = True
    save_file({"d2t": chosen - torch.arange(small), "t2d": known}, folder / "vocabulary.safetensors")
    return folder


def environment(home: Path) -> dict[str, str]:
    """Return what the executor lets an engine see."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "TZ": "UTC",
        "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def run_script(script: str | Path, job: Any, folder: Path) -> Any:
    """Run a script that serves in a process of its own, and return the JSON that it prints for a job."""
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "job.json")],
        env=environment(folder), capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def run_stage(
    package: str,
    stage: str,
    params: Mapping[str, Any],
    folder: Path,
    *,
    inputs: Mapping[str, Path | None],
    files: Mapping[str, Path] | None = None,
) -> tuple[int, list[Event]]:
    """Run a stage as the executor does, in `folder`, and return its exit code and events; output in `folder/output`."""
    for name in ("output", "work", "units", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    job = StageJob(
        stage=stage, version=1, key="8" * 64, params=params, facets={"device": "cpu", "threads": 1},
        inputs={name: Input(path=str(path), digest=DIGEST) for name, path in inputs.items() if path is not None},
        files={name: str(path) for name, path in (files or {}).items()},
        output=str(folder / "output"), work=str(folder / "work"), units=str(folder / "units"),
    )  # fmt: skip
    (folder / "job.json").write_text(job.dump())
    done = subprocess.run(
        [sys.executable, "-m", f"specc.{package}", str(folder / "job.json")],
        cwd=folder / "work", env=environment(folder / "home"), capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    (folder / "log").write_text(done.stderr)
    return done.returncode, [load_event(line) for line in done.stdout.splitlines()]


def calm(verifier: Path) -> Path:
    """Make a random verifier repeat itself, by shrinking what its layers add to the residual stream."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(verifier / "model.safetensors")
    for name, tensor in tensors.items():
        if "o_proj" in name or "down_proj" in name:
            tensor.mul_(0.07)
    save_file(tensors, verifier / "model.safetensors", metadata={"format": "pt"})
    return verifier


def habits(verifier: Path, prompts: list[list[int]], count: int) -> list[int]:
    """Return the tokens that a verifier writes most: with few to choose from, any draft is right at times."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(verifier), dtype=torch.float32)
    written = [
        model.generate(torch.tensor([row]), do_sample=False, max_new_tokens=24)[0, len(row) :] for row in prompts
    ]
    return torch.bincount(torch.cat(written), minlength=384).topk(count).indices.tolist()


def assemble(folder: Path, values: Mapping[str, Any], verifier: Path, *, tokens: list[int] | None = None) -> Path:
    """Write a checkpoint of a random draft with the stage's own functions, in this process."""
    from specc.export.checkpoint import write_weights, write_words

    (folder / "output").mkdir(parents=True)
    draft = write_draft(folder / "draft", values)
    vocabulary = write_vocabulary(folder / "vocabulary", values, tokens)
    weights = folder / "output" / "model.safetensors"
    write_weights(values, weights, draft=draft, verifier=verifier, vocabulary=vocabulary)
    write_words(values, folder / "output")
    return folder / "output"


def build_checkpoint(
    folder: Path, values: Mapping[str, Any], verifier: Path, *, seed: int = 0, tokens: list[int] | None = None
) -> Path:
    """Run the stage `checkpoint` for a random draft and return the checkpoint's folder."""
    draft = write_draft(folder / "draft", values, seed=seed)
    vocabulary = write_vocabulary(folder / "vocabulary", values, tokens)
    inputs = {"draft": draft, "verifier": verifier, "vocabulary": vocabulary}
    params = {key: value for key, value in values.items() if key != "evaluate"}
    code, events = run_stage("export", "checkpoint", params, folder, inputs=inputs)
    assert code == 0, events
    return folder / "output"


def source(path: Path, name: str) -> dict[str, Any]:
    """Return the resolved entry of a prompt file."""
    return {"file": name, "sha256": sha256_file(path), "rows": None}
