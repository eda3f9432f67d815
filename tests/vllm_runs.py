"""Stages that start vLLM, run in their own process with the environment that the executor gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specc.core.contracts import Event
from specc.core.files import sha256_file
from stages import make_job, run_process

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "2",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",  # tests share their cores, and threads that spin are then ten times slower
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def facts(verifier: Path) -> dict[str, Any]:
    """Return the tree `verifier.config` of a folder made by `small.make_verifier`."""
    raw = json.loads((verifier / "config.json").read_text())
    eos = raw.pop("eos_token_id")
    return {**raw, "architecture": raw["architectures"][0], "eos_token_ids": [eos]}


def run(
    stage: str, root: Path, params: Mapping[str, Any], inputs: Mapping[str, Path], *, code: int = 0
) -> tuple[Path, list[Event], str]:
    """Run a stage below `root` and return its output, what it reported, and its log."""
    root.mkdir(parents=True, exist_ok=True)
    job = make_job(stage, root, params, inputs=inputs, facets={"device": "cpu", "threads": 2})
    found, events, log = run_process("datagen", job, root, HOME=str(root / "home"), **ENVIRONMENT)
    assert found == code, (events, log[-3000:])
    return Path(job.output), events, log


def keep_first_unit(source: Path, target: Path, output: Path) -> None:
    """Leave in `target` what a run in `source` had when it was killed after its first shard."""
    first = sha256_file(next(iter(sorted((output / "shards").iterdir()))))
    for seal in (source / "units").rglob("*.sha256"):
        if seal.read_text() == first:
            place = target / seal.relative_to(source)
            place.parent.mkdir(parents=True)
            shutil.copy(seal, place)
            shutil.copy(seal.with_suffix(""), place.with_suffix(""))
