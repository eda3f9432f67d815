"""What the engines will be told, written down for people: no stage reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specc.core.engines import answer_arguments, capture_arguments, deepspeed_config, vllm_arguments
from specc.core.files import pretty
from specc.core.plan.stages import layers_of, verifier_processes
from specc.core.targets.jobs import Job


def engine_files(values: Mapping[str, Any], jobs: Sequence[Job], device: str) -> dict[str, bytes]:
    """Return `vllm.json` (arguments by stage) and `deepspeed.json` for the locked `values` on a `device`."""
    verifier, length = values["verifier"], values["data"]["sequence_length"]
    processes = verifier_processes(values["runtime"])
    capture = capture_arguments(layers_of(values["draft"]))
    vllm = {
        "responses": vllm_arguments(verifier, length, device, processes)
        | answer_arguments(values["data"]["responses"], device),
        "hidden_states": vllm_arguments(verifier, length + 1, device, processes) | capture,
    }
    known = {job.stage for job in jobs}
    return {
        "vllm.json": pretty({stage: told for stage, told in vllm.items() if stage in known}).encode(),
        "deepspeed.json": pretty(deepspeed_config(values["train"], device)).encode(),
    }
