"""Quantised verifiers: what the `quantization_config` of their `config.json` says, in one form for all methods.

The body is vLLM's to compute. Training reads the embeddings, the final norm and the head, which every method leaves as
they are unless told otherwise; a verifier whose head is quantised is refused, since a draft's targets would be those
of another head than the one that checks its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from specc.core.errors import SpeccError

METHODS: Final = ("awq", "compressed-tensors", "fp8", "gptq", "mxfp4")
"""Methods whose tensors are known here, by the names that `quant_method` has for them."""


def quantisation(raw: Mapping[str, Any], *, tied: bool) -> dict[str, Any] | None:
    """Return the facts `method`, `scheme` and `group` of a `config.json`, None if it says of no quantisation.

    `scheme` is as in the presets of llm-compressor: `W4A16` are weights of 4 bits and activations as they are, `W8A8`
    integers of 8 bits, `FP8` and `MXFP4` the formats of these names; several are joined by `+`. `group` is the number
    of weights that share a scale, or `channel`, `tensor` or `block`. `act_order` is there where groups are not of
    neighbours. Raises `SpeccError` for a method that is not known here and for a quantised head.
    """
    found = raw.get("quantization_config") or raw.get("compression_config") or _inside(raw).get("quantization_config")
    if not isinstance(found, Mapping) or not found:
        return None
    section = cast("Mapping[str, Any]", found)
    method = str(section.get("quant_method", "")).lower()
    if method not in METHODS:
        known = ", ".join(f"`{name}`" for name in METHODS)
        raise SpeccError(f"verifiers that are quantised by `{method}` are not in this release",
                         hint=f"these are: {known}; name the model that it was made from, or one of these")  # fmt: skip
    if _head_is(section, method) and not tied:
        raise SpeccError(
            "the verifier's head is quantised (`lm_head` in its `quantization_config`)",
            hint="use one that leaves `lm_head` as it is: a draft learns the logits of exactly that head",
        )
    return {"method": method, **_FACTS[method](section)}


def _inside(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    text = raw.get("text_config")
    return cast("Mapping[str, Any]", text) if isinstance(text, Mapping) else {}


def _grouped(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of AWQ and GPTQ, which differ in their tensors alone."""
    bits, group = int(section["bits"]), int(section["group_size"])
    if bits not in (4, 8):
        raise SpeccError(f"the verifier's weights have {bits} bits, which is not in this release",
                         hint="integers of 4 and 8 bits and floats of 8 bits are")  # fmt: skip
    order = {"act_order": True} if section.get("desc_act") else {}
    return {"scheme": f"W{bits}A16", "group": group if group > 0 else "channel", **order}


def _fp8(section: Mapping[str, Any]) -> dict[str, Any]:
    return {"scheme": "FP8", "group": "block" if section.get("weight_block_size") else "tensor"}


def _compressed(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of compressed-tensors, whose groups of layers may have schemes of their own."""
    groups: Mapping[str, Mapping[str, Any]] = section["config_groups"]
    schemes, sizes, ordered = set[str](), set[Any](), False
    for one in groups.values():
        weights, inputs = one["weights"], one.get("input_activations")
        schemes.add(_scheme(weights, inputs))
        strategy = str(weights.get("strategy"))
        sizes.add(int(weights["group_size"]) if strategy in {"group", "tensor_group"} else strategy)
        ordered = ordered or weights.get("actorder") in (True, "group", "dynamic")
    (size, *others) = sorted(sizes, key=str)
    return {"scheme": "+".join(sorted(schemes)), "group": "several" if others else size,
            **({"act_order": True} if ordered else {})}  # fmt: skip


def _scheme(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> str:
    bits, kind = int(weights["num_bits"]), weights["type"]
    own = int(inputs["num_bits"]) if inputs else 16
    if (kind, bits) not in {("int", 4), ("int", 8), ("float", 8)}:
        raise SpeccError(f"the verifier's weights are of type {kind} with {bits} bits, which is not in this release",
                         hint="integers of 4 and 8 bits and floats of 8 bits are")  # fmt: skip
    return f"W{bits}A{own}" if kind == "int" else "FP8" if own == 8 else f"FP8A{own}"


def _mxfp4(_: Mapping[str, Any]) -> dict[str, Any]:
    return {"scheme": "MXFP4", "group": 32}


_FACTS: Final = {"awq": _grouped, "compressed-tensors": _compressed, "fp8": _fp8, "gptq": _grouped, "mxfp4": _mxfp4}


def _head_is(section: Mapping[str, Any], method: str) -> bool:
    """Tell whether a method says that it has the head quantised, too."""
    if method != "compressed-tensors":
        return bool(section.get("lm_head"))
    groups: Mapping[str, Mapping[str, Any]] = section["config_groups"]
    targets = [str(target) for one in groups.values() for target in one.get("targets", ())]
    spared = any("lm_head" in str(name) for name in section.get("ignore") or ())
    return any(target == "Linear" or "lm_head" in target for target in targets) and not spared
