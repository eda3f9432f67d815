"""The shipped spec whose verifier and data are on a hub, against one on this machine that holds them in small.

The verifier's `config.json` and `generation_config.json` have the values that its authors publish; its tokenizer is a
small stand-in and its chat template one of this repository's own in the family's manner, since of both a lock takes no
more than their sha256. The data sets have their own file names, splits and columns, and rows made here.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table, parquet

from hub import Hub
from projects import Project
from small import make_tokenizer
from specc.core.plan.costs import ENCODED
from talks import CHATML, WEATHER

NAME = "qwen3-8b-eagle3.yaml"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
GENERATION = {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
              "temperature": 0.6, "top_k": 20, "top_p": 0.95}  # fmt: skip
SHARDS = 5
ROWS = 12
"""Rows of each data set here."""


def spoken(number: int, *names: str) -> list[dict[str, str]]:
    """Return a conversation whose turns have a role and a content under two names."""
    role, content = names
    human, gpt = ("human", "gpt") if role == "from" else ("user", "assistant")
    return [{role: human, content: f"What is {number} and {number}?"}, {role: gpt, content: f"It is {2 * number}."}]


def table(rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(Table.from_pylist(list(rows)), file)
    return file.getvalue()


def glaive(number: int) -> dict[str, str]:
    call = f"""{{"name": "weather", "arguments": '{{"city": "Town {number}"}}'}}"""
    return {
        "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
        + json.dumps(WEATHER["function"], indent=4)
        + "\n",
        "chat": f"USER: Does it rain in town {number}?\n\n\nASSISTANT: <functioncall> {call} <|endoftext|>\n\n\n"
        'FUNCTION RESPONSE: {"rain": true}\n\n\nASSISTANT: It does. <|endoftext|>\n\n\n\n',
    }


@pytest.fixture
def project(root: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The spec with its prompts beside it, and a hub that has what it names."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # and not what `--offline` leaves behind in this process
    folder = tmp_path / "model"
    make_tokenizer(folder, (root / "tests/datagen/templates/qwen3.jinja").read_text(), specials=CHATML)
    weights = {f"model-{number:05d}-of-{SHARDS:05d}.safetensors": f"weights {number}".encode()
               for number in range(1, SHARDS + 1)}  # fmt: skip
    hub.push("Qwen/Qwen3-8B", {
        **{path.name: path.read_bytes() for path in folder.iterdir()}, **weights, "README.md": b"# Qwen3-8B",
        "config.json": json.dumps(CONFIG).encode(), "generation_config.json": json.dumps(GENERATION).encode(),
        "model.safetensors.index.json": b'{"weight_map": {}}',
    })  # fmt: skip
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {0}\n    path: data/{0}-*\n---\n"
    every = range(ROWS)
    hub.push("mlabonne/open-perfectblend", {
        "README.md": card.format("train").encode(),
        "data/train-00000-of-00006.parquet": table(
            [{"conversations": spoken(n, "from", "value"), "source": "made"} for n in every]),
    })  # fmt: skip
    hub.push("HuggingFaceH4/ultrachat_200k", {
        "README.md": card.format("train_sft").encode(),
        "data/train_gen-00000-of-00003-a6c9fb894be3e50b.parquet": table([{"prompt": "of another split"}]),
        "data/train_sft-00000-of-00003-a3ecf92756993583.parquet": table(
            [{"prompt": "?", "prompt_id": str(n), "messages": spoken(100 + n, "role", "content")} for n in every]),
    })  # fmt: skip
    hub.push("Magpie-Align/Magpie-Llama-3.1-Pro-300K-Filtered", {
        "README.md": card.format("train").encode(),
        "data/train-00000-of-00004.parquet": table(
            [{"uuid": str(n), "instruction": "?", "response": "!", "conversations": spoken(200 + n, "from", "value")}
             for n in every]),
    })  # fmt: skip
    hub.push("glaiveai/glaive-function-calling-v2", {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "glaive-function-calling-v2.json": json.dumps([glaive(n) for n in every]).encode(),
    })  # fmt: skip
    made = Project(tmp_path / "project", tmp_path / "store")
    (made.folder / "prompts").mkdir(parents=True)
    shutil.copy(root / "specs" / NAME, made.folder)
    shutil.copy(root / "specs/prompts/held-out.jsonl", made.folder / "prompts")
    return made


def test_the_spec_is_checked_locked_and_planned_for_eight_gpus(project: Project, hub: Hub) -> None:
    project.run("check", NAME)
    project.run("lock", NAME)
    values = json.loads((project.folder / "qwen3-8b-eagle3.lock.json").read_text())["locked"]["values"]
    assert values["verifier"]["revision"] == hub.branches["Qwen/Qwen3-8B"]["main"]
    assert values["verifier"]["config"]["eos_token_ids"] == [151643, 151645]
    assert values["draft"]["hidden_state_layers"] == [2, 18, 33]
    assert [source["licence"] for source in values["data"]["sources"]] == [
        "apache-2.0", "mit", "llama3.1", "apache-2.0"]  # fmt: skip
    assert not any(asked.endswith((".safetensors", ".parquet")) for asked in hub.asked), "nothing large is fetched"
    hub.asked.clear()
    project.run("lock", "--check", NAME)
    plan = json.loads(project.run("plan", "--class", "cuda", "--json", NAME)[0])
    assert hub.asked == []
    assert (plan["class"], plan["warnings"], plan["estimate"]["complete"]) == ("cuda-t8-r8", [], True)
    found = {stage["stage"]: stage["estimate"] for stage in plan["stages"]}
    tokens, weights = found["tokens"]["tokens"], 8_190_735_360
    assert 40_000 * 250 < tokens < 40_000 * 1000
    layers = 4 * 4096 * 2 * ENCODED["bfloat16"]  # three layers and the last
    assert found["hidden_states"]["disk"] == pytest.approx(layers * tokens, rel=1e-6)
    assert found["verifier"]["disk"] == pytest.approx(2 * weights, rel=0.01)
    assert 2 * weights < found["responses"]["memory"] / 8 < 40e9, "a verifier and its cache fit a GPU of 40 GB"
    assert 2 * 60 < found["draft"]["seconds"] < 12 * 3600
    assert 5 * 60 < found["responses"]["seconds"] < 3 * 3600, "on eight of them"


@pytest.mark.parametrize("target", ["slurm", "kubernetes"])
def test_the_spec_is_compiled_for_a_node_with_eight_gpus(project: Project, target: str) -> None:
    project.run("lock", NAME)
    given = ("--set", "image=registry.example/specc:0.1.0") if target == "kubernetes" else ()
    project.run("compile", NAME, "--target", target, "--class", "cuda", "--out", "out", *given)
    out = project.folder / "out"
    assert json.loads((out / "compiled.json").read_text())["class"] == "cuda"
    (draft,), (answers,), (other,) = (
        [path.read_text() for path in out.glob(f"jobs/*-{name}.*")] for name in ("draft", "responses", "evaluation")
    )
    gpus = {"slurm": "#SBATCH --gres=gpu:{}\n", "kubernetes": '"nvidia.com/gpu": {}\n'}[target]
    assert gpus.format(8) in draft
    assert gpus.format(8) in answers
    assert gpus.format(1) in other
    assert json.loads((out / "vllm.json").read_text())["responses"]["max_model_len"] == 4096


def test_rows_of_all_four_data_sets_are_read_and_mixed(project: Project) -> None:
    done = project.specc("build", "--json", "--stage", "conversations", NAME)
    digest = json.loads(done.stdout)["artifacts"]["conversations"].removeprefix("sha256:")
    (folder,) = project.store.glob(f"{digest[:12]}-conversations-*")
    rows = [json.loads(line) for path in sorted(folder.glob("shards/*")) for line in path.open()]
    counts = {name: sum(row["source"].startswith(name) for row in rows) for name in (
        "mlabonne/", "HuggingFaceH4/", "Magpie-Align/", "glaiveai/")}  # fmt: skip
    assert counts["mlabonne/"] == ROWS, "the mix ends where its largest source runs out"
    assert list(counts.values())[1:] == [8, 8, 3]
    called = next(row for row in rows if row["source"].startswith("glaiveai/"))
    assert [message["role"] for message in called["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(called["tools"])[0]["function"]["name"] == "weather"
