"""Which GPUs or cores a process of a stage has: its part of those that the spec gives the stage, or of all.

Numbers are those of the build's own devices, so that what a scheduler or the caller has chosen holds for them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from specc.core.contracts import StageJob
from specc.core.errors import Exit, SpeccError

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
GPUS: Final = Path("/proc/driver/nvidia/gpus")


def gpus_of(job: StageJob, gpus: Path = GPUS) -> str | None:
    """Return what `CUDA_VISIBLE_DEVICES` is for a process of a job, None if it is not to be set.

    `gpus` is the folder in which the driver has one for each. Raises `SpeccError` if there are not so many.
    """
    if job.facets.get("device") != "cuda":
        return None
    here, devices = os.environ.get(VISIBLE), job.context.get("devices")
    _, count = job.share
    if devices is None and count == 1:
        return here
    if devices is None:
        devices = range(count * int(job.facets.get("tensor_parallel", 1)))
    if here is not None:
        visible = [name.strip() for name in here.split(",") if name.strip()]
    else:  # without the folder, as in WSL, nothing tells before CUDA does
        known = len(list(gpus.iterdir())) if gpus.exists() else max(devices) + 1
        visible = [str(number) for number in range(known)]
    return ",".join(visible[device] for device in _part(job, devices, len(visible), "GPU"))


def cores_of(job: StageJob) -> set[int] | None:
    """Return the cores that a process of a job on a CPU may use, None for all that the build may.

    Raises `SpeccError` if the build itself may not use so many.
    """
    devices = job.context.get("devices")
    if devices is None or job.facets.get("device") != "cpu":
        return None
    mine = sorted(os.sched_getaffinity(0))
    return {mine[device] for device in _part(job, devices, len(mine), "core")}


def _part(job: StageJob, devices: Sequence[int], usable: int, kind: str) -> Sequence[int]:
    if max(devices) >= usable:
        raise SpeccError(
            f"`{job.stage}` is to have {kind} {max(devices)}, counted from 0, and this build may use {usable}",
            hint="`runtime.datagen` and `runtime.train` have the number of processes, and `devices`",
            code=Exit.STAGE,
        )
    number, count = job.share
    size = len(devices) // count
    return devices[number * size : (number + 1) * size]
