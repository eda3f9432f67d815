"""What is written down of the engines is what the stages start them with."""

from __future__ import annotations

import json

import pytest

from compiling import Compiler
from specc.core.engines import answer_arguments
from specc.core.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_the_engines_arguments_are_there_for_stages_that_start_them(plain: Compiler, target: str) -> None:
    folder = plain(target, "--class", "cuda")
    vllm = json.loads((folder / "vllm.json").read_text())
    assert list(vllm) == ["hidden_states"], "answers are the data's own"
    told = vllm["hidden_states"]
    assert told["dtype"] == "bfloat16"
    assert told["max_model_len"] == 513
    assert told["block_size"] == 16
    assert "enforce_eager" not in told
    layers = told["speculative_config"]["draft_model_config"]["hf_config"]["eagle_aux_hidden_state_layer_ids"]
    locked = json.loads((folder / "project/tiny.lock.json").read_text())["locked"]["values"]
    assert layers == locked["draft"]["hidden_state_layers"]
    deepspeed = json.loads((folder / "deepspeed.json").read_text())
    assert deepspeed["zero_optimization"]["stage"] == 1
    assert deepspeed["bf16"] == {"enabled": True}


def test_where_answers_are_drawn_a_cpu_reads_no_prompt_in_pieces() -> None:
    whole = {"enable_chunked_prefill": False}
    assert answer_arguments({"temperature": 0.7}, "cpu") == whole
    assert answer_arguments({"temperature": 0.0}, "cpu") == answer_arguments({"temperature": 0.7}, "cuda") == {}


def test_a_verifier_that_is_spread_has_as_many_devices(plain: Compiler) -> None:
    spec = plain.project.folder / plain.spec
    spec.write_text(spec.read_text() + "runtime: {datagen: {tensor_parallel: 2}}\n")
    plain.project.run("lock", plain.spec)
    for target, asks in (("slurm", "#SBATCH --gres=gpu:{}\n"), ("kubernetes", '"nvidia.com/gpu": {}\n')):
        folder = plain(target, "--class", "cuda", out=target)
        told = json.loads((folder / "vllm.json").read_text())["hidden_states"]
        assert (told["tensor_parallel_size"], told["distributed_executor_backend"]) == (2, "mp")
        texts = {path.stem.partition("-")[2]: path.read_text() for path in (folder / "jobs").iterdir()}
        assert asks.format(2) in texts["hidden-states"]
        assert asks.format(1) in texts["draft"]


@pytest.mark.engine
def test_deepspeed_takes_what_is_written_down(plain: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    DeepSpeedConfig(json.loads((plain("shell") / "deepspeed.json").read_text()))
