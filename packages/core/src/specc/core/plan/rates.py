"""How fast this machine is: by its own earlier runs, or by declared numbers."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from specc.core.algorithms import algorithm
from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.lock import MachineClass
from specc.core.plan.corpus import Corpus, number, read_json
from specc.core.plan.costs import COSTS, WIDTH, head_size, learnt_shapes, rows_seen, weight_bytes
from specc.core.plan.plan import PlannedStage
from specc.core.plan.stages import OF_A_MACHINE, Values, verifier_processes
from specc.core.store import Store
from specc.core.store.manifests import repeats

MEASURES: Final = {"evaluation": "evaluation.json", "benchmark": "benchmark.json"}
"""Stages whose work is prompts, and the file that says how many they were."""

# Declared numbers. `quickstart` is the build of specs/quickstart.yaml on two idle cores of the class `cpu-avx512_bf16`,
# which README.md has a table of; `full` a build with 8,743 of the prompts in specs/prompts, 1,370,063 tokens, on the
# same cores while they did other work; `bench` are the files of tools/bench/results.

GFLOPS: Final[Mapping[str, tuple[float, float]]] = {
    # sustained by the layers of a verifier that reads, in bf16 and in fp32: of one core, or of a GPU
    "cpu-amx": (614, 140),  # twice the next one in bf16: 30 % of 1,024 operations a cycle at 2 GHz, not measured by us
    "cpu-avx512_bf16": (307, 140),  # quickstart: 2,818 tokens/s; in fp32 less by 196 to 431 (bench-train, `gflops`)
    "cpu-avx512": (140, 140),  # the same in fp32: without such instructions oneDNN computes bf16 products in fp32
    "cpu-avx2": (70, 70),  # half of that: registers are half as wide
    "cuda": (208_000, 13_000),  # two thirds of what NVIDIA states for an A100, not measured by us
}
SHARE: Final[Mapping[str, float]] = {
    # of that rate, reached by a stage; all from quickstart
    "responses": 0.70,  # 1,191 tokens/s, prompts being read besides
    "hidden_states": 1.0,
    "draft": 0.55,  # 202 s with validation and start
    "evaluation": 0.33,  # 105 s with all starts, in batches of 16
    "benchmark": 0.33,  # the same, for batches of 16
}
DECODER: Final = 0.043
"""The reference decoder's: 4 to 5 minutes for each of the four evaluations by it of specs/algorithms.yaml, there."""
START: Final[Mapping[str, Mapping[str, float]]] = {
    # seconds before the first token, by device; of CUDA, where vLLM compiles and captures graphs, not measured by us
    "responses": {"cpu": 12, "cuda": 60},  # quickstart: 105 s, 93 s of them at 1,191 tokens/s
    "hidden_states": {"cpu": 12, "cuda": 60},  # quickstart: 68 s, 54 s of them at 2,818 tokens/s
    "draft": {"cpu": 6, "cuda": 20},  # bench-scale: 9.8 s and 41.8 s for 1,200 and 12,000 rows
    "evaluation": {"cpu": 32, "cuda": 300},  # the same first start, and four more at 5 s
    "benchmark": {"cpu": 12, "cuda": 60},  # the same first start; `ENGINE` is each further one's
}
ENGINE: Final[Mapping[str, float]] = {"cpu": 5, "cuda": 60}
"""Seconds of a further engine in the same process."""
BYTES: Final[Mapping[str, float]] = {
    # a second, of the artifact; of `vocabulary`, of the tokens that it counts
    "verifier": 100e6,  # full: 269 MB out of a GGUF file in 2.6 s; a copy takes less
    "conversations": 18e6,  # bench-scale: 12,000 rows in 0.27 s
    "tokens": 2.4e6,  # full: 7 MB in 2.9 s
    "vocabulary": 32e6,  # full: those 7 MB in 0.22 s
    "converted": 55e6,  # as the checkpoint: the same tensors, read and written
    "checkpoint": 55e6,  # full: 76 MB in 1.4 s
    "prompts": 1e6,  # a download; not measured by us
    "stitched": 100e6,  # as the verifier: a copy, and what changed in the head
}
VERIFYING: Final = ("responses", "hidden_states", "evaluation", "benchmark")
"""Stages that run the verifier in vLLM."""
PYTHON: Final = 42_000_000
"""Resident bytes of a stage without an engine: bench-scale, `conversations`."""
VLLM: Final = 850_000_000
"""Of vLLM with next to no model: bench-scale, `hidden_states`."""
TRAINER: Final = 714_000_000
"""Of torch and DeepSpeed with next to no model: bench-scale, `draft`."""
CACHE: Final[Mapping[str, int]] = {"cpu": 2 << 30, "cuda": 8 << 30}
"""Of vLLM's cache of keys and values at most: what the data stages ask for."""
CACHED: Final = 256
"""Sequences that have a place in that cache."""


def resident(name: str, values: Values, machine: MachineClass, disks: Mapping[str, float], processes: int) -> float:
    """Return a process's peak resident bytes, of so many; a verifier that is spread over some has a part in each.

    Those of hidden states that training has mapped are not counted: the kernel takes them back when it needs them.
    """
    verifier, draft = values["verifier"], values["draft"]
    config, weights = verifier["config"], weight_bytes(verifier)
    if name in VERIFYING:
        heads = config["num_key_value_heads"] * config["head_dim"]
        place = 2 * config["num_hidden_layers"] * heads * WIDTH[verifier["dtype"]]
        cache = min(CACHE[machine.device], CACHED * values["data"]["sequence_length"] * place)
        again = {
            "evaluation": 2 * weights + disks["checkpoint"],  # the fp32 answers
            "benchmark": weights + disks["checkpoint"] + cache,  # the other engine
        }
        return VLLM + (weights + cache + again.get(name, 0)) / verifier_processes(values["runtime"])
    if name == "draft":
        learnt = sum(math.prod(shape) for shape in learnt_shapes(values).values())
        ends = 2 * head_size(config) * WIDTH[verifier["dtype"]]
        inner = draft.get("intermediate_size", config["intermediate_size"])
        wide = 12 * config["hidden_size"] + 4 * inner  # a row's kept activations at each step
        cost, rows = algorithm(draft["algorithm"]).training(draft, config, 0.0), values["train"]["batch_tokens"]
        rows = min(rows, cost.most or rows) * cost.kept / processes
        return TRAINER + ends + 18 * learnt + 2 * rows * wide
    whole = {"verifier": 2.0 if verifier["format"] == "gguf" else 0.0, "checkpoint": 4.0, "converted": 4.0}
    return PYTHON + whole.get(name, 0.0) * disks[name]


def declared(
    name: str, values: Values, machine: MachineClass, amount: float, flops: float | None, *, processes: int
) -> float:
    """Return a stage's seconds at declared rates, in so many processes."""
    if flops is None:
        return amount / BYTES[name] / processes
    narrow, wide = GFLOPS[machine.name]
    exact = values["train"]["precision"] == "fp32" if name == "draft" else values["verifier"]["dtype"] == "float32"
    cores = (1 if machine.device == "cuda" else values["runtime"]["threads"]) * processes
    start, share = START[name][machine.device], SHARE[name]
    if name == "benchmark":
        start += ENGINE[machine.device] * len(values["evaluate"]["grid"]["speculative_tokens"])
    if name == "evaluation" and machine.device not in algorithm(values["draft"]["algorithm"]).vllm(values["draft"]):
        share = DECODER
    return start + flops / (1e9 * share * (wide if exact else narrow) * cores)


@dataclass(frozen=True, slots=True)
class Run:
    """An earlier run of a stage on this machine: how its artifact came about, and its record.

    `start` are seconds in which it did none of its work, `busy` those in which it did `amount`: tokens, or bytes where
    there is no model.
    """

    manifest: Manifest
    record: Mapping[str, Any]
    start: float
    busy: float
    amount: float

    @property
    def workers(self) -> int:
        """The processes that made its units."""
        return int(number(self.record.get("workers")) or 1)

    @property
    def streamed(self) -> bool:
        """Whether hidden states were computed beside it."""
        return bool(self.manifest.streamed)

    @property
    def remote(self) -> bool:
        """Whether an endpoint computed."""
        return not repeats(self.manifest.stage, self.manifest.params)

    def likeness(self, stage: PlannedStage) -> tuple[bool, bool, bool, int]:
        """Return what the most similar run has the most of: the code's version, the verifier, all values, newness."""
        then = {name: value for name, value in self.manifest.params.items() if name != "stages"}
        verifier = _verifier_of(then) == _verifier_of(stage.row.params)
        newness = self.record.get("order", 0)
        return self.manifest.version == stage.row.version, verifier, then == stage.row.params, newness

    def memory(self, stage: PlannedStage) -> int | None:
        """Return its peak resident bytes, where the same code had the same values, if other data."""
        peak = number(self.record.get("peak_rss"))
        return round(peak) if peak and all(self.likeness(stage)[:3]) else None


def _verifier_of(params: Values) -> Any:
    verifier: Any = params.get("verifier")
    return (verifier.get("config"), verifier.get("dtype")) if isinstance(verifier, dict) else None


def runs_here(store: Store | None, machine: MachineClass) -> dict[str, list[Run]]:
    """Return the store's runs on this machine, by stage; none if they say that it is of another class."""
    if store is None:
        return {}
    found: dict[str, list[Run]] = {}
    classes = set[tuple[Any, Any]]()
    for manifest in store.indexed():
        record = store.record(manifest.key)
        if record.get("host") != platform.node() or (seconds := number(record.get("seconds"))) is None:
            continue
        if "isa" in manifest.facets:
            classes.add((manifest.facets.get("device"), manifest.facets["isa"]))
        work = _work(store, manifest, record, seconds)
        if work and work[1] > 0 and work[2] > 0:
            found.setdefault(manifest.stage, []).append(Run(manifest, record, *work))
    return found if not classes or (machine.device, machine.isa) in classes else {}


def _work(
    store: Store, manifest: Manifest, record: Mapping[str, Any], seconds: float
) -> tuple[float, float, float] | None:
    """Return a run's start, busy seconds and amount; None if it does not say."""
    if (file := MEASURES.get(manifest.stage)) is not None:
        return 0.0, seconds, number(read_json(store, manifest.digest, file).get("prompts")) or 0.0
    if manifest.stage not in COSTS:
        counted = manifest
        if manifest.stage == "vocabulary":
            try:
                counted = store.manifest(manifest.inputs["tokens"])
            except (SpeccError, KeyError):
                return None
        return 0.0, seconds, counted.size
    rate, tokens, parts = (record.get(name) for name in ("tokens_per_second", "tokens", "parts"))
    speed, count = (number(rate) or 0.0) * (number(record.get("workers")) or 1), number(tokens)
    if isinstance(parts, dict):
        spent: dict[str, Any] = parts
        start, *busy = (number(spent.get(part)) or 0.0 for part in ("start", "step", "data"))
        return start, seconds - start, speed * sum(busy)
    return (max(0.0, seconds - count / speed), count / speed, count) if count and speed else None


def most_similar(stage: PlannedStage, runs: list[Run]) -> Run | None:
    """Return the run to measure by: on the same device with the same instructions, threads, ranks and processes."""
    wanted = {name: stage.facets.get(name) for name in OF_A_MACHINE}
    same = [run for run in runs if {name: run.manifest.facets.get(name) for name in wanted} == wanted]
    return max(same, key=lambda run: run.likeness(stage), default=None)


def stand_ins(name: str, runs: Mapping[str, list[Run]]) -> list[Run]:
    """Return the runs of another stage that tell how fast this one is: of a benchmark, evaluations in vLLM."""
    some = runs.get("evaluation", []) if name == "benchmark" else []
    return [run for run in some if "tokens_per_second" in run.record]


def scaled(run: Run, stage: PlannedStage, corpus: Corpus, amount: float, flops: float | None) -> float | None:
    """Return seconds at the rate of a run: by amount, and by what its own values would cost on this much data."""
    cost, then = COSTS.get(run.manifest.stage), run.manifest.params
    busy = run.busy * run.workers / stage.row.workers
    if cost is None or flops is None:
        return busy * amount / run.amount
    if stage.name in MEASURES:
        amount = corpus.prompts
    try:
        before = cost(then, corpus)
        if stage.name == "draft":  # more epochs are more tokens already
            before *= rows_seen(stage.row.params, corpus) / rows_seen(then, corpus)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, SpeccError):
        return None  # of an older release, whose values are others
    return run.start + busy * amount / run.amount * (flops / before if before else 1.0)
