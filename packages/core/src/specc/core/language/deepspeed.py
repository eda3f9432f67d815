"""`train.deepspeed`: the values of DeepSpeed that a spec may give, by DeepSpeed's own names.

Only what decides how a reproducible training runs is here. What another field decides, and what this release leaves
out, stands in `reserved`; `tests/train/test_deepspeed_keys.py` holds all of it to the installed DeepSpeed, key by key.
"""

import posixpath
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import Field

from specc.core.algorithms import Section
from specc.core.files import flatten

Elements = Annotated[int, Field(ge=0)]
"""A number of elements of tensors."""


class Offload(Section):
    """Where what is offloaded is kept."""

    device: Literal["cpu", "nvme"] | None = None
    """Machine's memory, or a disk; `nvme` needs ZeRO stage 3 and a build of DeepSpeed with its `async_io`.
    Default: `cpu`."""
    nvme_path: Annotated[str, Field(min_length=1)] | None = None
    """Folder for `nvme`, inside the stage's work folder in the store: `runtime.store` decides on which disk that is.
    Default: none, and `nvme` needs one."""
    buffer_count: Annotated[int, Field(ge=1)] | None = None
    """Number of buffers between memory and disk. Default: DeepSpeed's, 4 for the optimizer and 5 for parameters."""


class OffloadOptimizer(Offload):
    """Values of `offload: optimizer`; `train.zero` says whether anything is offloaded."""

    pipeline_read: bool | None = None
    """Whether the next part of the optimizer is read while this one steps. Default: false."""
    pipeline_write: bool | None = None
    """Whether the part before is written while this one steps. Default: false."""
    fast_init: bool | None = None
    """Whether the disk is filled at once when training starts. Default: false."""


class OffloadParameters(Offload):
    """Values of `offload: parameters`; `train.zero` says whether anything is offloaded."""

    buffer_size: Elements | None = None
    """Number of elements of a buffer between memory and disk. Default: DeepSpeed's, 100000000."""
    max_in_cpu: Elements | None = None
    """Number of elements that stay in memory beside the disk. Default: DeepSpeed's, 1000000000."""


class ZeroOptimization(Section):
    """How ranks exchange gradients and parameters; `train.zero` says what they share."""

    reduce_bucket_size: Annotated[int, Field(ge=1)] | None = None
    """Number of elements that are reduced at once. Default: 5000000, since a draft is small."""
    allgather_bucket_size: Elements | None = None
    """Number of elements that are gathered at once at stages 1 and 2. Default: 5000000, since a draft is small."""
    overlap_comm: bool | None = None
    """Whether gradients are reduced while the backward pass goes on. Default: false."""
    contiguous_gradients: bool | None = None
    """Whether gradients are copied into one buffer as they are made. Default: true."""
    reduce_scatter: bool | None = None
    """Whether each rank receives its own part of the gradients only. Default: true."""
    round_robin_gradients: bool | None = None
    """Whether ranks copy their gradients to memory in turns, at stages 1 and 2. Default: false."""
    use_multi_rank_bucket_allreduce: bool | None = None
    """Whether buckets of several ranks are reduced together, at stages 1 and 2. Default: true."""
    stage3_prefetch_bucket_size: Elements | None = None
    """Number of elements that are fetched ahead of their use. Default: 5000000."""
    stage3_param_persistence_threshold: Elements | None = None
    """Number of elements below which a parameter is not shared out. Default: DeepSpeed's, 100000."""
    stage3_max_live_parameters: Elements | None = None
    """Number of elements that a device holds before it lets go of some. Default: 5000000."""
    stage3_max_reuse_distance: Elements | None = None
    """Number of elements before its next use within which a parameter is kept. Default: DeepSpeed's, 1000000000."""
    offload_optimizer: OffloadOptimizer | None = None
    """Values of `offload: optimizer` in `train.zero`."""
    offload_param: OffloadParameters | None = None
    """Values of `offload: parameters` in `train.zero`."""


class Aio(Section):
    """How DeepSpeed reads and writes a disk; with `device: nvme` alone."""

    block_size: Annotated[int, Field(ge=1)] | None = None
    """Bytes of one request. Default: DeepSpeed's, 1048576."""
    queue_depth: Annotated[int, Field(ge=1)] | None = None
    """Number of requests that wait at once. Default: DeepSpeed's, 8."""
    intra_op_parallelism: Annotated[int, Field(ge=1)] | None = None
    """Number of threads of one request. Default: DeepSpeed's, 1."""
    single_submit: bool | None = None
    """Whether requests are submitted one by one. Default: false."""
    overlap_events: bool | None = None
    """Whether new requests are submitted while earlier ones are waited for. Default: true."""


class DeepSpeed(Section):
    """Further values of DeepSpeed, by its own names; they decide how the training runs and are part of its key."""

    communication_data_type: Literal["fp32", "bf16"] | None = None
    """Numeric type in which gradients are reduced. Default: DeepSpeed's, that of the gradients."""
    zero_optimization: ZeroOptimization | None = None
    """How ranks exchange gradients and parameters."""
    aio: Aio | None = None
    """How a disk is read and written."""


OFFLOADS: Final[Mapping[str, tuple[str, ...]]] = {
    "zero_optimization.offload_optimizer": ("optimizer", "parameters"),
    "zero_optimization.offload_param": ("parameters",),
}
"""Values of an offload, and the values of `train.zero.offload` that have it."""

_SHARED: Final = frozenset({1, 2})
_WHOLE: Final = frozenset({1, 2, 3})
STAGES: Final[Mapping[str, frozenset[int]]] = {
    "zero_optimization.reduce_bucket_size": _WHOLE,
    "zero_optimization.allgather_bucket_size": _SHARED,
    "zero_optimization.overlap_comm": _WHOLE,
    "zero_optimization.contiguous_gradients": _WHOLE,
    "zero_optimization.reduce_scatter": _WHOLE,
    "zero_optimization.round_robin_gradients": _SHARED,
    "zero_optimization.use_multi_rank_bucket_allreduce": _SHARED,
    **dict.fromkeys(
        (f"zero_optimization.{name}" for name in ZeroOptimization.model_fields if name.startswith("stage3_")),
        frozenset({3}),
    ),
}
"""ZeRO stages that a value has an effect at, by its dotted name; those that are not here have one at all."""


class Conflict(NamedTuple):
    """A value that DeepSpeed takes in silence: the error's id, its sentence, where it stands, and what to do.

    `paths` are dotted; the first of them that the spec writes is meant.
    """

    id: str
    message: str
    paths: tuple[str, ...]
    hint: str


def conflicts(train: Mapping[str, Any]) -> Iterator[Conflict]:
    """Yield what has no effect beside the rest of `train`, or would fail when training starts."""
    given = flatten(train.get("deepspeed", {}))
    stage: int = train["zero"]["stage"]
    for name in given:
        if name in STAGES and stage not in STAGES[name]:
            yield Conflict("E0231", f"`{name}` has no effect at ZeRO stage {stage}", (_path(name),),
                           f"remove it, or use `stage: {min(STAGES[name])}` in `train.zero`")  # fmt: skip
    for part, wanted in OFFLOADS.items():
        values = {name: value for name, value in given.items() if name.startswith(f"{part}.")}
        if values and train["zero"]["offload"] not in wanted:
            yield Conflict("E0234", f"`{_path(part)}` has values, and `train.zero.offload` is"
                           f" `{train['zero']['offload']}`", (_path(part),),
                           f"remove it, or use `offload: {wanted[0]}` in `train.zero`")  # fmt: skip
        elif values:
            yield from _of_offload(part, values, stage)
    disks = [part for part in OFFLOADS if given.get(f"{part}.device") == "nvme"]
    if not disks and any(name.startswith("aio.") for name in given):
        yield Conflict("E0233", "`aio` has no effect without `device: nvme`", (_path("aio"),),
                       "remove it, or offload to a disk")  # fmt: skip


def _of_offload(part: str, values: Mapping[str, Any], stage: int) -> Iterator[Conflict]:
    device, place = f"{part}.device", f"{part}.nvme_path"
    if values.get(device) != "nvme":
        for name in sorted(values.keys() - {device}):
            yield Conflict("E0233", f"`{name}` has no effect without `device: nvme`", (_path(name),),
                           "remove it, or add `device: nvme`")  # fmt: skip
    elif stage != 3:
        yield Conflict("E0231", f"`device: nvme` has no effect at ZeRO stage {stage}", (_path(device),),
                       "use `stage: 3` in `train.zero`, or `device: cpu`")  # fmt: skip
    elif place not in values or not _is_inside(values[place]):
        yield Conflict("E0232", "`device: nvme` needs an `nvme_path` inside the stage's work folder",
                       (_path(place), _path(device)),
                       "write `nvme_path: swap`: `runtime.store` says on which disk that is")  # fmt: skip


def _path(name: str) -> str:
    return f"train.deepspeed.{name}"


def _is_inside(name: str) -> bool:
    """Tell whether a path is relative and does not climb out of the folder that it is relative to."""
    path = PurePosixPath(posixpath.normpath(name))
    return not path.is_absolute() and ".." not in path.parts
