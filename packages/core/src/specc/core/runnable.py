"""What vLLM 0.32 cannot run on a class of machines, known before anything is started.

On a GPU it runs every family and every method that specc knows. Its CPU build has three libraries of kernels, for
AVX2, for AVX-512 and for AVX-512 with bf16 (AMX too), and not every kernel is in each of them. What AVX2 runs was
tried; for the others stand the kernels that their libraries have and the conditions that vLLM puts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def refusals(values: Mapping[str, Any], machine: MachineClass, document: Document | None) -> list[SpeccError]:
    """Return why vLLM cannot run the verifier of resolved `values` on a class of machines, nothing if it can.

    `values` are `verifier.config` and `verifier.model`; the errors stand at the verifier in `document`, if there is
    one.
    """
    verifier = values["verifier"]
    if machine.device != "cpu" or (reason := _refused(verifier["config"], machine.isa)) is None:
        return []
    identity, message, hint = reason
    if document is None:
        return [SpeccError(message, id=identity, hint=hint)]
    return [document.error(message, ("verifier", "model"), id=identity, hint=hint)]


def _refused(config: Mapping[str, Any], isa: str) -> tuple[str, str, str] | None:
    """Return the id, the message and the hint."""
    quantised: Mapping[str, Any] | None = config.get("quantization")
    if quantised is None:
        return None
    named = f"the verifier's weights are {quantised['scheme']} ({quantised['method']})"
    if quantised.get("act_order"):
        return (
            "E0332",
            f"{named} with groups that are no neighbours, which vLLM's CPU kernel takes for neighbours",
            f"quantise it without activation order (`desc_act`, `actorder`), or build on a GPU: {_GPU}",
        )
    able = [
        QUANTISED.get(scheme) or QUANTISED.get(f"{scheme} {quantised['group']}", ())
        for scheme in quantised["scheme"].split("+")
    ]
    if config["model_type"] in EXPERTS:
        able.append(QUANTISED_EXPERTS)
    sets = [one for one in _ANY if all(one in some for some in able)]
    if isa in sets:
        return None
    where = f"on a CPU with {listed(sets, 'or')} alone, and the class has `{isa}`" if sets else "on no CPU"
    return (
        "E0331",
        f"{named}, which vLLM 0.32 runs {where}",
        f"name the model that it was made from, or build on a GPU: {_GPU}",
    )
