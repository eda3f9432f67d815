"""What this machine is, found without torch: its class, and the engines that are installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.lock.engines import CLASSES

ISA_FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "amx": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_bf16", "amx_tile"}),
    "avx512_bf16": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx2": frozenset({"avx2", "fma"}),
    "x86": frozenset(),
}
"""Instruction sets, richest first, with the flags in /proc/cpuinfo that each one needs."""
FALLBACK: Final = "cpu-avx2"
"""The class that a machine without one of its own plans for: it can lock and plan, and not build."""


@cache
def detect_class() -> tuple[str, str]:
    """Return this machine's (device, instruction set): (`cuda`, `cuda`), (`cpu`, `amx`) …, (`cpu`, `x86`)."""
    cuda = CLASSES["cuda"].engines
    gpu = any(Path(f"/dev/{device}").exists() for device in ("nvidiactl", "nvidia0", "dxg"))  # the last one: WSL
    if gpu and installed(["vllm"])["vllm"] == cuda["vllm"]:
        return "cuda", "cuda"
    return "cpu", isa_of(cpu_flags())


def machine_name() -> str:
    """Return the name of this machine's row in `specc.core.lock.engines`, or that of the plainest CPU row."""
    device, isa = detect_class()
    return next((row.name for row in CLASSES.values() if (row.device, row.isa) == (device, isa)), FALLBACK)


def isa_of(flags: frozenset[str]) -> str:
    """Return the richest instruction set whose flags are all there."""
    return next(isa for isa, needed in ISA_FLAGS.items() if needed <= flags)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the first core's flags; none where there is no such file."""
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, flags = line.partition(":")
            if name.strip() == "flags":
                return frozenset(flags.split())
    except OSError:
        pass
    return frozenset()


def require_isa(facets: Mapping[str, Any]) -> None:
    """Raise `SpeccError` if a stage's key names a device or an instruction set that this machine lacks.

    A richer instruction set than the key's is fine: the stage's environment narrows it.
    """
    wanted = facets.get("isa")
    if wanted is None:
        return
    device, isa = detect_class()
    order = list(ISA_FLAGS)
    able = wanted == isa or (wanted in order and isa in order and order.index(isa) <= order.index(wanted))
    if not able:
        raise SpeccError(
            f"the stage is planned for the class `{facets.get('device', 'cpu')}` with `{wanted}`, and this machine"
            f" is `{device}` with `{isa}`",
            hint="build on such a machine, or plan for this one with a lock of its own",
            code=Exit.STAGE,
        )


def installed(distributions: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each distribution, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
