"""Load DSpark checkpoints with vLLM's own class and choose a block's tokens with its heads, as its speculator does.

`python vllm_dspark.py JOB.json`: `{"verifier": folder, "checkpoints": [folder, …], "states": file, "work": folder}`.
It prints one JSON list with, for each checkpoint, `{"drafts", "confidence"}`, or `{"refused": words}` if vLLM cannot
load it. vLLM's CPU build starts no engine with DSpark; its model runs there all the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.models.qwen3_dspark import Qwen3DSparkForCausalLM


def load(arguments: EngineArgs, config: Any, folder: str) -> Qwen3DSparkForCausalLM:
    """vLLM's draft model with a checkpoint's weights; its head is the verifier's where the checkpoint has none."""
    arguments.speculative_config = {"method": "dspark", "model": folder}
    tokens = json.loads((Path(folder) / "config.json").read_text())["speculators_config"]["proposal_methods"][0]
    arguments.speculative_config["num_speculative_tokens"] = tokens["speculative_tokens"]
    config.speculative_config = arguments.create_speculative_config(config.model_config, config.parallel_config)
    config.compilation_config.static_forward_context.clear()
    model = Qwen3DSparkForCausalLM(vllm_config=config)
    model.load_weights(iter(load_file(Path(folder) / "model.safetensors").items()))
    if not model.has_own_lm_head:
        verifier = load_file(Path(arguments.model) / "model.safetensors")
        model.lm_head.weight.data[: config.model_config.get_vocab_size()] = verifier["model.embed_tokens.weight"]
    process_weights_after_loading(model, config.model_config, torch.device("cpu"))
    return model


def draft(model: Qwen3DSparkForCausalLM, states: torch.Tensor, anchors: torch.Tensor) -> dict[str, Any]:
    """Choose the tokens of blocks with states [blocks, proposed, hidden], one after another."""
    previous, drafts, embeds = anchors, [], []
    for slot in range(states.shape[1]):
        embed = model.markov_embed(previous)
        logits = model.compute_draft_logits(states[:, slot]) + model.markov_bias(embed)
        previous = model.map_draft_to_target(logits.argmax(-1))
        drafts.append(previous)
        embeds.append(embed)
    found: dict[str, Any] = {"drafts": torch.stack(drafts, 1).tolist(), "confidence": None}
    if model.model.confidence_head is not None:
        found["confidence"] = model.compute_confidence(states, torch.stack(embeds, 1)).tolist()
    return found


def main() -> None:
    """Answer a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    given = load_file(job["states"])
    arguments = EngineArgs(model=job["verifier"], dtype="float32", max_model_len=64, enforce_eager=True)
    config = arguments.create_engine_config()
    found: list[dict[str, Any]] = []
    with set_current_vllm_config(config), torch.inference_mode():
        init_distributed_environment(1, 0, f"file://{job['work']}/rendezvous", 0, backend="gloo")
        initialize_model_parallel(1)
        for number, folder in enumerate(job["checkpoints"]):
            try:
                model = load(arguments, config, folder)
            except (ValueError, KeyError, AttributeError) as error:
                found.append({"refused": str(error)})
                continue
            found.append(draft(model, given[f"states.{number}"], given["anchors"]))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
