"""`make bench-core`: how long the compiler lets a person wait, and what it does not read again, in one run.

    check, plan       seconds of a whole process, of the shipped spec that takes longest: limit over what it took
    check_starts      the same in starts of this Python (`python -c pass`): 20 of them over those that it took
    plan_starts       with 35
    matrix            `plan` of 1,000 builds, with their lock there: 3 s over what it took
    no_build          a build with nothing to do and 2 GB in the store: 1 s over what it took
    hash              bytes a second of a file's digest over those of `sha256sum`, on one core
    hash_tensors      the same for the digest of a safetensors file's tensors
    unread_<command>  share of an unchanged store of 100 GB that the command does not read

Sides are run by turns, and times are medians. The store is that of a small real spec: four stages are built by the
stages themselves, and the three that need an engine are sealed as their output would be, under the keys that the plan
has for them, with files of the size that is wanted. Those are holes: sealing reads and hashes them as any others, and
they take no disk. `require` is what a build does with an artifact before a stage reads it. Bytes are those that the
system counts for a process (`rchar` in /proc/self/io), with Python's own modules among them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import which
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from machine import SPECC, keep

from specc.core.compiler import compile_builds
from specc.core.contracts import Input, StageJob
from specc.core.execute import machine_name
from specc.core.files import remove_tree, sha256_file, tensors_digest
from specc.core.plan import Decision, decide
from specc.core.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from projects import Project, make_project

Found = tuple[dict[str, float], dict[str, float], dict[str, Any]]
"""Ratios, limits and details."""

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 15
SECONDS = {"check": 0.35, "plan": 0.6}
MATRIX = """\
extends: tiny.yaml
matrix:
  train.optimizer.learning_rate: [RATES]
  draft.layers: [1, 2, 3, 4, 5]
  train.epochs: [1, 2]
"""
STARTS = {"check": 20, "plan": 35}
HASHED = 1_000_000_000
STORED = 2_000_000_000
OTHERS = 100
"""Artifacts of other builds in that store, which hold half of it."""
LARGE = 100_000_000_000
SHARDS = 20
PASS = [sys.executable, "-c", "pass"]


def main() -> int:
    """Measure everything, and keep the results."""
    ratios: dict[str, float] = {}
    limits: dict[str, float] = {}
    details: dict[str, Any] = {}
    for measure in (waiting, matrix, no_build, hashing, unread):
        found = measure()
        ratios |= found[0]
        limits |= found[1]
        details |= found[2]
    return keep("core", ratios, limits, details)


# How long a person waits


def waiting() -> Found:
    """Run `check` of every shipped spec, and `plan` of those with a lock, beside a Python that does nothing."""
    specs = sorted((ROOT / "specs").glob("*.yaml"))
    with TemporaryDirectory() as folder:
        sides = {("pass", ""): PASS} | {
            (command, spec.name): [SPECC, command, str(spec)]
            for command in SECONDS
            for spec in specs
            if command == "check" or spec.with_suffix(".lock.json").exists()  # the others' verifiers are on a hub
        }
        times = turns({name: lambda line=line: run(line, Path(folder)) for name, line in sides.items()}, ROUNDS)
    start = times.pop(("pass", ""))
    ratios: dict[str, float] = {}
    for command, limit in SECONDS.items():
        slowest = max(took for (name, _), took in times.items() if name == command)
        ratios[command] = round(limit / slowest, 3)
        ratios[f"{command}_starts"] = round(STARTS[command] * start / slowest, 3)
    found = {f"{command} {spec}": {"seconds": round(took, 4), "starts": round(took / start, 1)}
             for (command, spec), took in times.items()}  # fmt: skip
    return ratios, dict.fromkeys(ratios, 1.0), {"start_seconds": round(start, 4), **found}


def matrix() -> Found:
    """Plan a thousand builds that share all but their training."""
    with TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        rates = ", ".join(f"{number}e-5" for number in range(1, 101))
        spec = project.folder / "matrix.yaml"
        spec.write_text(MATRIX.replace("RATES", rates))
        run([SPECC, "lock", str(spec)], project.store)
        took = turns({"plan": lambda: run([SPECC, "plan", str(spec)], project.store)}, 3)["plan"]
    return {"matrix": round(3 / took, 3)}, {"matrix": 1}, {"matrix": {"builds": 1000, "seconds": round(took, 3)}}


def no_build() -> Found:
    """Run `build` where all is built."""
    with TemporaryDirectory() as folder:
        project = built(Path(folder), STORED // 2)
        store = Store(project.store)
        for number in range(OTHERS):
            put(store, job("tokens", f"{number:064x}"), {"shards/00000": STORED // 2 // OTHERS})
        line = [SPECC, "build", str(project.folder / "tiny.yaml")]
        assert b"nothing to do" in run(line, project.store).stderr
        size = sum(store.manifest(digest).size for digest in store.digests())
        assert size >= STORED
        took = turns({"build": lambda: run(line, project.store)}, ROUNDS)["build"]
        remove_tree(project.store)
    return {"no_build": round(1 / took, 3)}, {"no_build": 1.0}, {"no_build": {"seconds": round(took, 4), "bytes": size}}


# What is read


def hashing() -> Found:
    """Hash a file beside `sha256sum`, all of it in the system's cache."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.safetensors"
        header = json.dumps({"w": {"dtype": "U8", "shape": [HASHED], "data_offsets": [0, HASHED]}}).encode()
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in range(HASHED // 1_000_000):
                file.write(os.urandom(1_000_000))
        times = turns({
            "sha256sum": lambda: run([which("sha256sum") or "", str(path)], Path(folder)),
            "hash": lambda: sha256_file(path),
            "hash_tensors": lambda: tensors_digest(path),
        }, 3)  # fmt: skip
    ratios = {name: round(times["sha256sum"] / times[name], 3) for name in ("hash", "hash_tensors")}
    rates = {name: round(HASHED / took / 1e6) for name, took in times.items()}
    return ratios, dict.fromkeys(ratios, 0.8), {"megabytes_a_second": rates}


def unread() -> Found:
    """Count what commands read of a large store that did not change since it was sealed."""
    with TemporaryDirectory() as folder:
        project = built(Path(folder), LARGE)
        store = Store(project.store)
        digest = next(digest for digest in store.digests() if store.manifest(digest).stage == "hidden_states")
        spec, size = str(project.folder / "tiny.yaml"), store.manifest(digest).size
        lines = {name: (name, spec) for name in ("plan", "status", "build")} | {"require": ("require", digest)}
        read = {name: counted(project.store, *line) for name, line in lines.items()}
        remove_tree(project.store)
    ratios = {f"unread_{name}": round(1 - count / size, 6) for name, count in read.items()}
    return ratios, dict.fromkeys(ratios, 0.999), {"unread": {"bytes": size, "read": read}}


def counted(store: Path, *line: str) -> int:
    """Return the bytes that a command reads in a process of its own."""
    return int(run([sys.executable, __file__, *line], store).stdout.splitlines()[-1])


def count(command: str, *arguments: str) -> int:
    """Run a command in this process, and print what it read."""
    if command == "require":
        Store(Path(os.environ["SPECC_STORE"])).require(arguments[0], "hidden_states")
    else:
        from specc.core.cli import main as specc

        assert specc([command, *arguments]) == 0
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    print(counters["rchar"])
    return 0


# A store, and how sides are run


def built(folder: Path, size: int) -> Project:
    """Return a project with all its artifacts in the store; its hidden states have so many bytes."""
    project = make_project(folder / "project", folder / "store")
    project.build()
    files = {
        "hidden_states": {f"shards/{number:05}": size // SHARDS for number in range(SHARDS)},
        "draft": {"model": 40_000_000},
        "checkpoint": {"model": 80_000_000},
    }
    compiled = compile_builds(project.folder / "tiny.yaml", trust="locked", machine=machine_name()).every[0]
    store = Store(project.store)
    for stage, holes in files.items():
        there = {item.stage.name: item for item in decide(compiled.plan, store)}
        inputs = {slot: there[name].digest or "" for slot, name in there[stage].stage.row.inputs.items()}
        put(store, planned(there[stage], inputs), holes)
    return project


def planned(decision: Decision, inputs: Mapping[str, str]) -> StageJob:
    """Return the job of a stage as a plan has it, as far as its artifact's manifest goes."""
    stage = decision.stage
    return job(stage.name, decision.key or "", version=stage.row.version, params=stage.params({}), facets=stage.facets,
               inputs={slot: Input(path="", digest=digest) for slot, digest in inputs.items()})  # fmt: skip


def job(stage: str, key: str, **known: Any) -> StageJob:
    """Return a job for a store to seal an output by."""
    rest = {"version": 1, "params": {}, "facets": {}, "inputs": {}, **known}
    return StageJob(stage=stage, key=key, files={}, output="", work="", units="", **rest)


def put(store: Store, of: StageJob, holes: Mapping[str, int]) -> None:
    """Seal an artifact whose files are holes of so many bytes, after a byte that is this key's alone."""
    output = store.begin(of.stage, of.key)
    for name, size in holes.items():
        (output / name).parent.mkdir(exist_ok=True)
        with (output / name).open("wb") as file:
            file.write(f"{of.key} {name}".encode())
            file.truncate(size)
    store.seal(of, "tiny", output, {"seconds": 1.0})


def run(line: list[str], store: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command that succeeds, on a store."""
    env = os.environ | {"SPECC_STORE": str(store)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's Python compiles a changed module once, and not at each run
    return subprocess.run(line, check=True, capture_output=True, env=env)


def turns(sides: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Return the median seconds of each side, taken by turns after a round that warms up."""
    times: dict[Any, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, work in sides.items():
            started = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - started)
    return {name: median(took[1:]) for name, took in times.items()}


if __name__ == "__main__":
    raise SystemExit(count(*sys.argv[1:]) if len(sys.argv) > 1 else main())
