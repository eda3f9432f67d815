"""What vLLM 0.32 cannot run on a class of machines, known before anything is started.

On a GPU it runs every family and every method that specc knows. Its CPU build has three libraries of kernels, for
AVX2, for AVX-512 and for AVX-512 with bf16 (AMX too), and not every kernel is in each of them. What AVX2 runs was
tried; for the others stand the kernels that their libraries have and the conditions that vLLM puts on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from specc.core.engines import EXPERTS
from specc.core.errors import SpeccError
from specc.core.language.document import Document
from specc.core.language.words import listed
from specc.core.lock import MachineClass

_ANY: Final = ("amx", "avx512_bf16", "avx512", "avx2")
_AVX512: Final = _ANY[:3]
_AMX: Final = _ANY[:1]
_GPU: Final = "`specc plan --class cuda` plans for one"

QUANTISED: Final[Mapping[str, tuple[str, ...]]] = {
    "W8A8": _ANY,
    "FP8 channel": _ANY,
    "FP8 tensor": _AMX,  # elsewhere `static_scaled_fp8_quant` is a name without a kernel
    "FP8 block": _AMX,
    "W4A16": _AVX512,  # `cpu_gemm_wna16`
    "MXFP4": _AMX,
}
"""Instruction sets on which a CPU runs a scheme, and what of it where groups matter; none where it is not named."""
QUANTISED_EXPERTS: Final = _AMX
"""Instruction sets on which it runs experts that are quantised: `fused_experts_cpu`."""
WITH_TORCHVISION: Final = frozenset({"qwen3_5_moe_text", "qwen3_5_text"})
"""Families whose classes in vLLM import torchvision, also for text. On a GPU it comes with vLLM."""


def refusals(values: Mapping[str, Any], machine: MachineClass, document: Document | None) -> list[SpeccError]:
    """Return why vLLM cannot run the verifier of resolved `values` on a class of machines, nothing if it can.

    `values` are `verifier` (`config`, `dtype`) and `evaluate`; the errors stand where `document`, if there is one, says
    what cannot be run.
    """
    if machine.device != "cpu":
        return []
    config = values["verifier"]["config"]
    found = [*_imports(config), *_quantised(config, machine.isa), *_linear(values)]
    if document is None:
        return [SpeccError(one.message, id=one.id, hint=one.hint) for one in found]
    return [document.error(one.message, one.path, id=one.id, hint=one.hint) for one in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    id: str
    message: str
    hint: str
    path: tuple[str, ...] = ("verifier", "model")


def _imports(config: Mapping[str, Any]) -> Iterator[_Refusal]:
    """Yield what is missing beside the vLLM that is installed here, if one is."""
    if config["model_type"] in WITH_TORCHVISION and find_spec("vllm") and not find_spec("torchvision"):
        yield _Refusal(
            id="E0335",
            message="vLLM 0.32 runs the verifier by a class that imports torchvision, which is not installed here",
            hint=f"install a torchvision that was built for this torch, or build on a GPU: {_GPU}",
        )


def _linear(values: Mapping[str, Any]) -> Iterator[_Refusal]:
    """Yield what asks for linear attention in another dtype than bf16; its kernels have no other."""
    verifier, evaluate = values["verifier"], values.get("evaluate")
    if not verifier["config"].get("linear_attention"):
        return
    reason = "the verifier has linear attention, which vLLM 0.32 computes on a CPU in bf16 alone"
    if verifier["dtype"] != "bfloat16":
        yield _Refusal(
            id="E0334",
            message=f"{reason}, and `verifier.dtype` is {verifier['dtype']}",
            hint=f"use `dtype: bfloat16`, or build on a GPU: {_GPU}",
            path=("verifier", "dtype"),
        )
    elif evaluate is not None and evaluate["lossless_prompts"]:
        yield _Refusal(
            id="E0334",
            message=f"{reason}, and `evaluate.lossless_prompts` asks for {evaluate['lossless_prompts']} in fp32",
            hint="set `evaluate.lossless_prompts` to 0; output in bf16 is compared on every prompt all the same",
            path=("evaluate", "lossless_prompts"),
        )


def _quantised(config: Mapping[str, Any], isa: str) -> Iterator[_Refusal]:
    """Yield what vLLM has no kernel for on CPUs with the instruction set `isa`."""
    quantised: Mapping[str, Any] | None = config.get("quantization")
    if quantised is None:
        return
    named = f"the verifier's weights are {quantised['scheme']} ({quantised['method']})"
    if quantised.get("act_order"):
        yield _Refusal(
            id="E0332",
            message=f"{named} with groups that are no neighbours, which vLLM's CPU kernel takes for neighbours",
            hint=f"quantise it without activation order (`desc_act`, `actorder`), or build on a GPU: {_GPU}",
        )
        return
    able = [
        QUANTISED.get(scheme) or QUANTISED.get(f"{scheme} {quantised['group']}", ())
        for scheme in quantised["scheme"].split("+")
    ]
    if config["model_type"] in EXPERTS:
        able.append(QUANTISED_EXPERTS)
    sets = [one for one in _ANY if all(one in some for some in able)]
    if isa not in sets:
        where = f"on a CPU with {listed(sets, 'or')} alone, and the class has `{isa}`" if sets else "on no CPU"
        yield _Refusal(
            id="E0331",
            message=f"{named}, which vLLM 0.32 runs {where}",
            hint=f"name the model that it was made from, or build on a GPU: {_GPU}",
        )
