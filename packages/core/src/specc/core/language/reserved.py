"""Names that the language refuses although somebody may mean something by them, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

_HUB_DATA: Final = "name a JSON Lines file: `file: prompts/mine.jsonl`"
_PRINTS: Final = "remove it: it prints or measures and changes nothing; `specc logs` has what a stage printed"
_OURS: Final = "remove it: specc trains in its own steps, from data and to checkpoints of its own"
_WHOLE: Final = "remove it: every rank has the whole draft, or its part at ZeRO stage 3"
_EXACT: Final = "remove it: it changes what is computed, which no test holds to `torch.optim`"

RESERVED: Final[Mapping[str, str]] = {
    # dotted path (`*` for an index of a list), or path=value: what to do instead
    "evaluate.prompts.*.url": _HUB_DATA,
    "evaluate.prompts.*.split": "name a file of the data set: `path: question.jsonl`",
    **{f"train.deepspeed.{name}": _PRINTS for name in (
        "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger",
        "comet", "csv_monitor", "log_level", "timers", "vocabulary_size",
        "zero_optimization.log_trace_cache_warnings", "zero_optimization.enable_sanity_checks")},
    **{f"train.deepspeed.{name}": f"remove it, and write `loggers: [{name}]` in `train`"
       for name in ("tensorboard", "wandb")},
    **{f"train.deepspeed.{name}": _OURS for name in (
        "activation_checkpointing", "autotuning", "checkpoint", "compile", "data_efficiency", "dataloader_drop_last",
        "datastates_ckpt", "disable_allgather", "disable_python_gc", "gradient_allreduce_op", "hybrid_engine",
        "managed_gradient_accumulation", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
        "zero_optimization.compute_grad_norm", "zero_optimization.elastic_checkpoint",
        "zero_optimization.ignore_unused_parameters", "zero_optimization.legacy_stage1",
        "zero_optimization.load_from_fp32_weights", "zero_optimization.memory_efficient_linear",
        "zero_optimization.override_module_apply", "zero_optimization.pipeline_loading_checkpoint",
        "zero_optimization.save_muon_momentum_buffer_in_memory",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.offload_optimizer.pin_memory", "zero_optimization.offload_param.pin_memory",
        "zero_optimization.offload_optimizer.ratio", "zero_optimization.offload_optimizer.super_offload",
        "zero_optimization.offload_optimizer.cpuadam_cores_perc", "aio.use_gds")},
    **{f"train.deepspeed.{name}": _WHOLE for name in (
        "expert_parallel", "pipeline", "tensor_parallel", "seq_parallel_communication_data_type",
        "use_data_before_expert_parallelism", "zero_optimization.leaf_module",
        "zero_optimization.zero_hpz_partition_size", "zero_optimization.parameter_alignment",
        "zero_optimization.allgather_partitions", "zero_optimization.sub_group_size",
        "zero_optimization.stage3_model_persistence_threshold",
        "zero_optimization.stage3_module_granularity_threshold",
        "zero_optimization.stage3_use_all_reduce_for_fetch_params",
        "zero_optimization.stage3_allgather_sequential")},
    **{f"train.deepspeed.{name}": _EXACT for name in (
        "prescale_gradients", "gradient_predivide_factor", "weight_quantization",
        "zero_optimization.zenflow", "zero_optimization.zero_quantized_weights",
        "zero_optimization.zero_quantized_nontrainable_weights", "zero_optimization.zero_quantized_gradients")},
    "runtime.datagen.python": "interpreters never come from a spec: they could run anything",
    "runtime.train.python": "interpreters never come from a spec: they could run anything",
    "runtime.datagen.pipeline_parallel": "spread every layer with `tensor_parallel`: vLLM hands out hidden states of"
    " one stage alone",
}  # fmt: skip

DECIDED: Final[Mapping[str, str]] = {
    # dotted path: the field that decides the value
    f"train.deepspeed.{name}": field
    for name, field in {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
                    "train.batch_tokens"),
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "data_types", "torch_autocast"), "train.precision"),
    "zero_optimization.stage": "train.zero.stage",
    }.items()
}  # fmt: skip


class Refused(NamedTuple):
    """Why a name or a value is refused: a sentence, what to do, and the error's id."""

    sentence: str
    hint: str
    id: str = "E0104"


def reserved(path: tuple[str | int, ...], value: object = None) -> Refused | None:
    """Return why a name or a value is refused, None if it is no such one."""
    name = ".".join("*" if isinstance(part, int) else part for part in path)
    if name in RESERVED:
        shown = name.replace(".*", "")
        return Refused(f"`{shown}` is not in this release", RESERVED[name])
    if field := DECIDED.get(name):
        return Refused(f"`{name}` follows from `{field}`", f"remove it, and set `{field}`", "E0107")
    if isinstance(value, str) and f"{name}={value}" in RESERVED:
        return Refused(f"`{value}` for `{name}` is not in this release", RESERVED[f"{name}={value}"])
    return None
