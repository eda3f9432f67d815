"""What vLLM and DeepSpeed are told, as plain data: stages start them with it, and `specc compile` writes it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
TRANSFORMERS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "olmo2"), "TransformersForCausalLM"),
    **dict.fromkeys(("mixtral", "qwen2_moe"), "TransformersMoEForCausalLM"),
}
"""Families of which vLLM has no class of its own that hands out hidden states, and what runs them."""
EXPERTS: Final = frozenset({"gpt_oss", "mixtral", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next"})
"""Families whose layers have experts."""
KNOWN_AS: Final[Mapping[str, str]] = {"mimo": "qwen2"}
"""Families that transformers knows by code in their repositories alone, which is never run, and the one that their
bodies are of. The stage `verifier` writes the latter into `config.json`."""
BUCKET: Final = 5_000_000
"""Elements that are reduced at once. DeepSpeed's default of 5e8 is allocated whole, and a draft is small."""


def vllm_arguments(verifier: Mapping[str, Any], length: int, device: str, processes: int = 1) -> dict[str, Any]:
    """Return what vLLM's `LLM` takes for a verifier (`dtype`, `config`), all but its folder.

    `length` is the positions of a sequence at most, `device` is `cpu` or `cuda`, and `processes` those that each
    layer is spread over.
    """
    # On a CPU, compiled kernels gain a tenth and cost 80 s of start-up and a cache that would decide bits too.
    here: Mapping[str, Any] = {"enforce_eager": True} if device == "cpu" else {}
    return {
        "dtype": verifier["dtype"],
        "max_model_len": length,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": step_tokens(length),
        "block_size": BLOCK[device],
        "num_gpu_blocks_override": cache_blocks(verifier, length, device),
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "seed": 0,
        **here,
        **spread(processes),
        **architecture(verifier["config"]),
        # A processor's output that is kept would grow with the data, and nothing is asked twice.
        **({"mm_processor_cache_gb": 0} if "image_token_id" in verifier["config"] else {}),
    }


def spread(processes: int) -> dict[str, Any]:
    """Return what vLLM takes to spread each layer of a verifier over processes of this machine; nothing for one."""
    return {} if processes == 1 else {"tensor_parallel_size": processes, "distributed_executor_backend": "mp"}


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what vLLM takes for a verifier that it has to run by another class than its own; mostly nothing."""
    other = TRANSFORMERS.get(config["model_type"])
    return {} if other is None else {"hf_overrides": {"architectures": [other]}}


def capture_arguments(layers: Sequence[int]) -> dict[str, Any]:
    """Return what vLLM takes besides to hand out the hidden states of `layers`, all but where they go."""
    return {
        "enable_chunked_prefill": False,  # a prompt in pieces would be computed in other batch shapes
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layers)}},
        },
    }


def answer_arguments(responses: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return what vLLM takes besides to answer as `data.responses` says.

    A prompt in pieces draws after each, and takes the draw back, which a CPU's generators cannot (vLLM 0.32).
    """
    return {"enable_chunked_prefill": False} if device == "cpu" and responses["temperature"] > 0 else {}


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


def deepspeed_config(train: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return DeepSpeed's configuration for the resolved `train` section on a `device`, `cpu` or `cuda`.

    Clipping is stated even where it is off: DeepSpeed would clip at 1.0 by itself. One micro batch is one
    optimizer step, because the loss's weights are those of a whole step. What `train.deepspeed` gives goes before
    our defaults, and what other fields decide before both. A relative `nvme_path` is inside the work folder, which
    is where a stage runs. Raises `SpeccError` for bf16 at ZeRO stage 0.
    """
    stage, offload, bf16 = train["zero"]["stage"], train["zero"]["offload"], train["precision"] == "bf16"
    muon = train["optimizer"]["name"] == "muon"  # which clips by itself, since DeepSpeed would clip its directions
    if bf16 and stage == 0:
        raise SpeccError("DeepSpeed keeps no fp32 masters for bf16 at ZeRO stage 0",
                         hint="set `train.zero.stage` to 1, or `train.precision` to fp32", code=Exit.INPUT)  # fmt: skip
    further: Mapping[str, Any] = train.get("deepspeed", {})
    zero = dict(further.get("zero_optimization", {}))
    in_memory = {"device": "cpu", "pin_memory": device == "cuda"}
    optimizer, parameters = (in_memory | zero.pop(name, {}) for name in ("offload_optimizer", "offload_param"))
    config: dict[str, Any] = {
        **further,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if muon else float(train["gradient_clipping"] or 0.0),
        "steps_per_print": 2**31,
        "zero_optimization": {
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "overlap_comm": False,
            **({"stage3_prefetch_bucket_size": BUCKET, "stage3_max_live_parameters": BUCKET} if stage == 3 else {}),
            **zero,
            "stage": stage,
            **({} if offload == "none" else {"offload_optimizer": optimizer}),
            **({"offload_param": parameters} if offload == "parameters" else {}),
        },
        # The optimizer is ours, also where its state is offloaded: the same bits, and nothing to compile.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bf16:
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config
