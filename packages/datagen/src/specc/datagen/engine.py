"""vLLM in this process: every value that decides its batches, and with them the bits, is fixed here.

In bf16 a sum over one batch shape differs from the sum over another, so the same text can come out otherwise at a
near tie. What makes a call repeat bit for bit, whatever was run before it:

- the engine core is in the calling process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`, which the executor sets) and
  schedules a step when the last one is over, so that all requests of a call are queued before its first step;
- sequences and tokens of a step are bounded by the constants below, and the cache has a number of blocks that
  follows from the model's dimensions, never from the memory that happens to be free;
- no prefix cache: what an earlier call left in it would shorten a later call's prefills.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Exit, SpeccError

SEQUENCES: Final = 256
"""Sequences of a step at most: a shard of the default size decodes as one batch."""
STEP_TOKENS: Final = 4096
"""Tokens of a step at most, unless a sequence is longer."""
EVEN: Final = 128
"""What the tokens of a prefill are made a multiple of. oneDNN compiles kernels for every number of rows and keeps them,
some 2 MB for all of a model's products: with numbers that hardly repeat, memory grows with the data."""
BLOCK: Final[Mapping[str, int]] = {"cpu": 128, "cuda": 16}
"""Positions of a block of the cache, as vLLM chooses them there."""
CACHE_BYTES: Final[Mapping[str, int]] = {"cpu": 2 << 30, "cuda": 8 << 30}
"""Memory for keys and values; less where `SEQUENCES` sequences of full length need less."""
_WIDTH: Final = {"bfloat16": 2, "float16": 2, "float32": 4}


def start(verifier: Path, params: Mapping[str, Any], facets: Mapping[str, Any], *, length: int, **more: Any) -> Any:
    """Return vLLM's `LLM` for a verifier's folder.

    `params` are the stage's (`verifier.dtype`, `verifier.config`), `facets["device"]` is `cpu` or `cuda`, `length`
    is the positions of a sequence at most; `more` goes to vLLM as it is. Raises `SpeccError` if vLLM cannot load it.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if length > params["verifier"]["config"]["max_position_embeddings"]:
        # By one: vLLM wants room for a token behind the last, which is then never computed.
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    from vllm import LLM

    device = facets.get("device", "cpu")
    # On a CPU, compiled kernels gain a tenth and cost 80 s of start-up and a cache that would decide bits too.
    here: Mapping[str, Any] = {"enforce_eager": True} if device == "cpu" else {}
    try:
        if device == "cpu":
            _import_models(params["verifier"]["config"]["architecture"], "ExtractHiddenStatesModel")
        return LLM(
            str(verifier),
            dtype=params["verifier"]["dtype"],
            max_model_len=length,
            max_num_seqs=SEQUENCES,
            max_num_batched_tokens=step_tokens(length),
            block_size=BLOCK[device],
            num_gpu_blocks_override=cache_blocks(params["verifier"], length, device),
            enable_prefix_caching=False,
            async_scheduling=False,
            seed=0,
            use_tqdm_on_load=False,
            **here,
            **more,
        )
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise SpeccError(
            f"vLLM cannot load the verifier: {type(error).__name__}: {first[:300]}",
            hint="the stage's log has vLLM's own words",
            code=Exit.STAGE,
        ) from error


def _import_models(*architectures: str) -> None:
    """Import the classes of models here and now.

    vLLM would import itself once more in a process of its own to look at each, which takes longer than all the
    rest of its start, and only to keep CUDA untouched in this one.
    """
    from vllm import ModelRegistry

    for architecture in architectures:
        known: Any = ModelRegistry.models.get(architecture)
        if known is not None:
            ModelRegistry.register_model(architecture, known.load_model_cls())


def step_tokens(length: int) -> int:
    """Return the tokens of a step at most, for sequences of `length` positions at most."""
    return -(-max(STEP_TOKENS, length) // EVEN) * EVEN


def cache_blocks(verifier: Mapping[str, Any], length: int, device: str) -> int:
    """Return the number of blocks of the cache: for as many sequences of `length` as memory allows, two at least."""
    config = verifier["config"]
    heads = config["num_key_value_heads"] * config["head_dim"]
    position = 2 * config["num_hidden_layers"] * heads * _WIDTH[verifier["dtype"]]  # bytes of keys and values
    sequence = -(-length // BLOCK[device])
    return max(2 * sequence, min(SEQUENCES * sequence, CACHE_BYTES[device] // (position * BLOCK[device])))


def generate(llm: Any, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Queue all prompts (token ids), then step; yield each prompt's number and vLLM's output when it is finished.

    `params` are vLLM's `SamplingParams`, one a prompt, with `RequestOutputKind.FINAL_ONLY`.
    """
    engine = llm.llm_engine
    for number, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, sampling)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                yield int(output.request_id), output


def stop(llm: Any) -> None:
    """Shut an engine down and give its memory back."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()
