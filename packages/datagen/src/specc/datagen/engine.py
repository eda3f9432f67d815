"""vLLM in this process: every value that decides its batches, and with them the bits, is fixed.

In bf16 a sum over one batch shape differs from the sum over another, so the same text can come out otherwise at a
near tie. What makes a call repeat bit for bit, whatever was run before it:

- the engine core is in the calling process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`, which the executor sets) and
  schedules a step when the last one is over, so that all requests of a call are queued before its first step. Where a
  verifier is spread over processes, these compute what the core in this one tells them to;
- sequences and tokens of a step are bounded by the constants of `specc.core.engines`, and the cache has a number of
  blocks that follows from the model's dimensions, never from the memory that happens to be free;
- no prefix cache: what an earlier call left in it would shorten a later call's prefills.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from specc.core.algorithms.mtp import HEADS
from specc.core.engines import vllm_arguments
from specc.core.errors import Exit, SpeccError
from specc.core.stage import log

_MIMO: Final = "MiMoForCausalLM"


def start(verifier: Path, params: Mapping[str, Any], facets: Mapping[str, Any], *, length: int, **more: Any) -> Any:
    """Return vLLM's `LLM` for a verifier's folder.

    `params` are the stage's (`verifier.dtype`, `verifier.config`), `facets["device"]` is `cpu` or `cuda`,
    `facets["tensor_parallel"]` the number of processes that it is spread over if there are several, `length` is the
    positions of a sequence at most; `more` goes to vLLM as it is. Raises `SpeccError` if vLLM cannot load it.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    config = params["verifier"]["config"]
    if length > config["max_position_embeddings"]:
        # By one: vLLM wants room for a token behind the last, which is then never computed.
        os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    from vllm import LLM

    device, processes = facets.get("device", "cpu"), facets.get("tensor_parallel", 1)
    try:
        if config["architecture"] == _MIMO:
            _register_mimo()
        return LLM(
            str(verifier),
            **vllm_arguments(params["verifier"], length, device, processes),
            use_tqdm_on_load=False,
            **more,
        )
    except Exception as error:
        log(error)
        first = next(iter(str(error).strip().splitlines()), "")
        raise SpeccError(
            f"vLLM cannot load the verifier: {type(error).__name__}: {first[:300]}",
            hint="the stage's log has vLLM's own words",
            code=Exit.STAGE,
        ) from error


def _register_mimo() -> None:
    """Run MiMo as the Qwen2 that it is without its head: vLLM's own class for it hands out no hidden states."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

    class Body(Qwen2ForCausalLM):
        def load_weights(self, weights: Iterable[tuple[str, Any]]) -> set[str]:
            head = HEADS["mimo"].place
            return super().load_weights((name, tensor) for name, tensor in weights if not name.startswith(head))

    ModelRegistry.register_model(_MIMO, Body)


def generate(llm: Any, prompts: Sequence[Any], params: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Queue all prompts, then step; yield each prompt's number and vLLM's output when it is finished.

    A prompt is a sequence of token ids, or with images what `specc.datagen.vision` makes of both. `params` are vLLM's
    `SamplingParams`, one a prompt, with `RequestOutputKind.FINAL_ONLY`.
    """
    engine = llm.llm_engine
    for number, (prompt, sampling) in enumerate(zip(prompts, params, strict=True)):
        asked = prompt if isinstance(prompt, dict) else {"prompt_token_ids": list(prompt)}
        engine.add_request(str(number), asked, sampling)
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
