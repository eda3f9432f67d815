"""vLLM, in this process.

In-process engines queue all requests of a call before the first step, so that batches and with them the bits
repeat. A further engine in one process starts in 4 to 6 s, while a process of its own would import vLLM anew for
7 s first (SmolLM2-135M, two shared cores). No engine keeps its weights: what stays is the allocator's, some 50 to
200 MB.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.engines import architecture, spread
from specc.core.errors import Exit, SpeccError
from specc.core.files import sha256
from specc.core.measure.acceptance import Counts
from specc.core.stage import log
from specc.evaluate.prompts import Asked, opened
from specc.evaluate.temperature import mend

BATCH: Final = 16
"""Sequences decoded at once. Fixed, since greedy output in bf16 depends on it, and so does the speed-up."""
CHUNK: Final = 2048
"""Most tokens of one step: prompts beyond it are prefilled in several."""
_COUNTERS: Final = "vllm:spec_decode_num_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one pass over the prompts gave: token ids of each answer, seconds, and the counters' growth."""

    answers: tuple[tuple[int, ...], ...]
    seconds: float
    counts: Counts

    @property
    def tokens(self) -> int:
        """Tokens written."""
        return sum(len(answer) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second, prefill included."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculator:
    """A speculator in the speculators format, and how many tokens it is asked for.

    Verifier and speculator are both given to vLLM by path, which then reads everything of the speculator's
    config but the name of its verifier.
    """

    folder: Path
    serving: Mapping[str, Any]
    tokens: int
    verifier: Path | None = None
    """A verifier of its own, where the draft is a part of it."""

    def as_config(self) -> dict[str, Any]:
        """Return vLLM's `speculative_config`."""
        return {**self.serving, "model": str(self.folder), "num_speculative_tokens": self.tokens}


def answer(
    verifier: Path,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    config: Mapping[str, Any],
    dtype: str,
    length: int,
    device: str,
    done: Callable[[], None],
    speculator: Speculator | None = None,
    processes: int = 1,
) -> Run:
    """Start vLLM, answer every prompt (token ids) greedily with up to `max_tokens` tokens, and take it down.

    `config` is `verifier.config` of the resolved spec, `length` the positions of a sequence, `device` is `cpu` or
    `cuda`, `processes` those that the verifier is spread over; `done` is called for each answer.
    Raises `SpeccError` if vLLM cannot load the verifier with the speculator, or not take a first step with it.
    """
    with engine(
        verifier,
        prompts[0],
        config=config,
        dtype=dtype,
        length=length,
        device=device,
        speculator=speculator,
        **spread(processes),
    ) as llm:
        before = counters(llm)
        started = time.monotonic()
        answers = _generate(llm, prompts, max_tokens, done)
        seconds = time.monotonic() - started
        return Run(answers=tuple(answers), seconds=seconds, counts=counters(llm).minus(before))


@contextmanager
def engine(
    verifier: Path,
    prompt: Sequence[int],
    *,
    config: Mapping[str, Any],
    dtype: str,
    length: int,
    device: str,
    speculator: Speculator | None = None,
    others: bool = False,
    **more: Any,
) -> Generator[Any]:
    """Start vLLM, let it answer a prompt so that all of it is started, and take it down in the end.

    The arguments are those of `answer`; `more` goes to vLLM as it is. With `others` another engine of this process
    stays up: what they share is then left to be taken down with it. Raises `SpeccError` as `answer` does.
    """
    from vllm.distributed import cleanup_dist_env_and_memory

    llm: Any = None
    try:
        served = (speculator and speculator.verifier) or verifier
        llm = _start(served, config, dtype=dtype, length=length, device=device, speculator=speculator, more=more)
        _generate(llm, [prompt], 2)  # the rest of the start-up hides in the first call
    except Exception as error:
        log(error)
        what = "the checkpoint with its verifier" if speculator else "the verifier"
        text = str(error).strip().splitlines()
        raise SpeccError(
            f"vLLM cannot run {what}: {type(error).__name__}{': ' + text[0][:300] if text else ''}",
            hint="the stage's log has vLLM's own words; a checkpoint that vLLM does not run is not built",
            code=Exit.STAGE,
        ) from error
    held = [llm]
    del llm
    try:
        yield held[0]
    finally:
        held.pop().llm_engine.engine_core.shutdown()
        if others:
            gc.collect()
        else:
            cleanup_dist_env_and_memory()  # it also collects the cycles that keep the weights alive


def _start(
    verifier: Path,
    config: Mapping[str, Any],
    *,
    dtype: str,
    length: int,
    device: str,
    speculator: Speculator | None,
    more: Mapping[str, Any],
) -> Any:
    import vllm

    other = architecture(config)
    if other or "image_token_id" in config:
        _leave_transformers_as_it_is()
    if speculator:
        mend()
    make: Any = vllm.LLM  # its types are narrower than what it takes
    # CUDA graphs are worth their start-up there. Here inductor would be in their place, and its cache would
    # have to be part of what decides the bits.
    here: Mapping[str, Any] = {"cpu": {"enforce_eager": True}, "cuda": {"gpu_memory_utilization": 0.8}}[device]
    arguments = {
        "dtype": dtype,
        "max_model_len": length,
        "max_num_seqs": BATCH,
        "max_num_batched_tokens": max(CHUNK, length),
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "seed": 0,
        "speculative_config": speculator.as_config() if speculator else None,
        **here,
        **other,
        **more,
    }
    return make(str(verifier), **arguments)


def _leave_transformers_as_it_is() -> None:
    """Let vLLM run transformers' classes without changing them.

    It would give a family's class an `__init__` that asks for a configuration of vLLM's, for good, and the reference
    is of the same class and comes later. What is lost is compilation, which a CPU does without anyway.
    """
    from vllm.model_executor.models.transformers import base

    def leave(*_: Any, **__: Any) -> None:
        pass

    backend: Any = base.Base
    backend._decorate_cls_for_torch_compile = leave


def _generate(
    llm: Any, prompts: Sequence[Sequence[int]], max_tokens: int, done: Callable[[], None] | None = None
) -> list[tuple[int, ...]]:
    """Queue all prompts, then step the engine until each has its answer; return them in the prompts' order."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    last = RequestOutputKind.FINAL_ONLY
    # No log-probabilities: vLLM ranks them in a function that inductor compiles, for longer than the prompts take.
    params = SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False, output_kind=last)
    for index, row in enumerate(prompts):
        llm.llm_engine.add_request(str(index), asked(row), params)
    answers: dict[str, tuple[int, ...]] = {}
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.finished:
                answers[output.request_id] = tuple(output.outputs[0].token_ids)
                if done:
                    done()
    return [answers[str(index)] for index in range(len(prompts))]


def asked(row: Sequence[int]) -> dict[str, Any]:
    """Return vLLM's prompt of token ids, with its images where it has some."""
    if not isinstance(row, Asked):
        return {"prompt_token_ids": list(row)}
    return {
        "prompt_token_ids": row.folded,
        "multi_modal_data": {"image": [opened(image) for image in row.images]},
        "multi_modal_uuids": {"image": [sha256(image) for image in row.images]},
    }


def counters(llm: Any) -> Counts:
    """Return vLLM's counters since the engine started."""
    found: dict[str, Any] = {
        metric.name.removeprefix(_COUNTERS): getattr(metric, "values", None) or getattr(metric, "value", 0)
        for metric in llm.get_metrics()
        if metric.name.startswith(_COUNTERS)
    }
    return Counts(
        drafts=int(found.get("drafts", 0)),
        draft_tokens=int(found.get("draft_tokens", 0)),
        accepted=int(found.get("accepted_tokens", 0)),
        per_position=tuple(int(count) for count in found.get("accepted_tokens_per_pos") or ()),
    )
