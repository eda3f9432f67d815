"""The stage `benchmark`: what a checkpoint is worth in vLLM over temperatures, numbers of tokens and batch sizes.

Two engines are up at a time, one without the speculator for as long as the stage runs and one with it for each number
of speculative tokens. Both answer the same prompts in turn, so that what slows the machine for a while slows both of a
pair. A further engine in this process takes some seconds to start, and its weights and its cache a second time the
memory: that is why there are two of them and not one for each cell.

An engine takes `batch_size` requests at most and the next one when one of them ends (a closed loop), between two of its
steps in this very process: which sequences share a step is then a matter of their lengths alone, and not of time, in
an engine for larger batches as in one for this size. So the batches of every run of a cell are the same, and with them
its bits, at temperature 0 and, with a seed for each prompt, at others too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from specc.core.engines import BLOCK, cache_blocks, spread
from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.measure.acceptance import Drafted, counts_of, measured
from specc.core.measure.advice import advice
from specc.core.measure.intervals import paired
from specc.core.stage import Stage
from specc.evaluate.engine import asked, counters, engine
from specc.evaluate.evaluation import room, runtime_of, trained_speculator
from specc.evaluate.lossless import differences
from specc.evaluate.prompts import prompts_of

SHARE: Final = 0.4
"""Of a GPU's memory, for each of the two engines. Not measured by us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run over the prompts: token ids of each answer, what was drafted for it (with a speculator), and seconds."""

    answers: tuple[tuple[int, ...], ...]
    drafted: tuple[Drafted, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens written."""
        return sum(len(answer) for answer in self.answers)


def closed_loop(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch: int,
    max_tokens: int,
    temperature: float,
    done: Callable[[], None],
) -> Pass:
    """Answer prompts (token ids) in their order, `batch` at once; each has its number as its seed.

    Raises `SpeccError` if what vLLM counts for the requests is not what it counts in all.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    steps, before = llm.llm_engine, counters(llm)
    answers: dict[int, tuple[int, ...]] = {}
    drafted: dict[int, Drafted] = {}
    waiting, active = iter(enumerate(prompts)), 0
    started = monotonic()
    while len(answers) < len(prompts):
        while active < batch and (item := next(waiting, None)) is not None:
            index, row = item
            params = SamplingParams(
                temperature=temperature,
                seed=index if temperature else None,
                max_tokens=max_tokens,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            steps.add_request(str(index), asked(row), params)
            active += 1
        for output in steps.step():
            if output.finished:
                answer, index = output.outputs[0], int(output.request_id)
                answers[index] = tuple(answer.token_ids)
                if (found := answer.spec_decode_metrics) is not None:
                    drafted[index] = Drafted(histogram=tuple(found.histogram), draft_tokens=found.num_draft_tokens)
                active -= 1
                done()
    seconds = monotonic() - started
    counted = tuple(drafted[index] for index in sorted(drafted))
    if drafted and counts_of(counted) != counters(llm).minus(before):
        raise SpeccError("vLLM's counts of the requests are not what it counts in all",
                         hint="install the vLLM that the lock pins: `specc doctor SPEC`", code=Exit.STAGE)  # fmt: skip
    return Pass(answers=tuple(answers[index] for index in range(len(prompts))), drafted=counted, seconds=seconds)


def benchmark(stage: Stage) -> None:
    """Write `benchmark.json`; speeds, and the setting that they speak for, go to the run's record.

    Raises `SpeccError` if vLLM does not run the draft here, cannot load it, or if no prompt can be read or fits.
    """
    Benchmark(stage).run()


class Benchmark:
    """One benchmark: its prompts, its grid, its engines' settings, and how far it is."""

    def __init__(self, stage: Stage) -> None:
        params, grid = stage.params, stage.params["evaluate"]["grid"]
        self.stage = stage
        self.config: Mapping[str, Any] = params["verifier"]["config"]
        self.dtype: str = params["verifier"]["dtype"]
        self.device = str(stage.facets.get("device", "cpu"))
        if runtime_of(params["draft"], self.device) != "vllm":
            raise SpeccError(f"vLLM does not run this draft on `{self.device}`, and other speeds say nothing",
                             hint="remove `evaluate.grid`", code=Exit.STAGE)  # fmt: skip
        self.temperatures: list[float] = sorted(float(one) for one in grid["temperatures"])
        self.tokens: list[int] = sorted(grid["speculative_tokens"])
        self.batches: list[int] = sorted(grid["batch_sizes"])
        self.repeats: int = grid["repeats"]
        self.max_tokens: int = params["evaluate"]["max_tokens"]
        self.verifier = stage.input("verifier")
        self.prompts, self.subsets = self._prompts()
        self.length = max(map(len, self.prompts)) + room(self.max_tokens, self.tokens[-1])
        self.plain: dict[tuple[float, int], Pass] = {}
        self.done = 0
        settings = len(self.temperatures) * len(self.batches)
        passes = settings * (1 + len(self.tokens) * (1 + 2 * self.repeats))
        self.total = passes * len(self.prompts)

    def run(self) -> None:
        """Measure every cell, write the report and record the speeds."""
        cells: list[dict[str, Any]] = []
        speeds: list[dict[str, Any]] = []
        with self._engine(None) as plain:
            for tokens in self.tokens:
                with self._engine(tokens) as speculating:
                    for temperature in self.temperatures:
                        for batch in self.batches:
                            cell, speed = self._cell(plain, speculating, temperature, tokens, batch)
                            cells.append(cell)
                            speeds.append(speed)
        result = {
            "runtime": "vllm",
            "prompts": len(self.prompts),
            "max_tokens": self.max_tokens,
            "subsets": {name: {"prompts": self.subsets.count(name)} for name in self._names()},
            "cells": cells,
        }
        write_atomic(self.stage.output / "benchmark.json", pretty(result))
        self.stage.record["benchmark"] = {"cells": speeds, "advice": advice(speeds)}

    def _prompts(self) -> tuple[list[list[int]], list[str]]:
        """Return the prompts that fit the verifier with a whole answer as token ids, and the subset of each."""
        rows, rendered = prompts_of(self.stage, self.verifier)
        limit, behind = self.config["max_position_embeddings"], room(self.max_tokens, self.tokens[-1])
        fitting = [(ids, row.subset) for ids, row in zip(rendered, rows, strict=True) if len(ids) + behind <= limit]
        if not fitting:
            raise SpeccError(f"no prompt of `evaluate.prompts` fits the verifier's {limit} positions",
                             hint="shorten the prompts or `evaluate.max_tokens`")  # fmt: skip
        if left := len(rendered) - len(fitting):
            self.stage.warn(f"{left} of {len(rendered)} prompts are too long for the verifier and left out")
        return [ids for ids, _ in fitting], [subset for _, subset in fitting]

    def _names(self) -> list[str]:
        return sorted(set(self.subsets))

    @contextmanager
    def _engine(self, tokens: int | None) -> Generator[Any]:
        """Start an engine with the speculator, asked for a number of tokens, or without it."""
        what = "the verifier alone" if tokens is None else f"{tokens} speculative tokens"
        self.stage.progress(self.done, self.total, "answers", f"{what}: starting vLLM")
        verifier = {"dtype": self.dtype, "config": self.config}
        blocks = 2 * self.batches[-1] * -(-self.length // BLOCK[self.device]) + 2  # some drafts have a pool of theirs
        memory: Mapping[str, Any] = {
            "cpu": {"num_gpu_blocks_override": min(blocks, cache_blocks(verifier, self.length, "cpu"))},
            "cuda": {"gpu_memory_utilization": SHARE},
        }[self.device]
        with engine(
            self.verifier,
            self.prompts[0],
            config=self.config,
            dtype=self.dtype,
            length=self.length,
            device=self.device,
            speculator=None if tokens is None else trained_speculator(self.stage, tokens),
            others=tokens is not None,
            max_num_seqs=self.batches[-1],
            async_scheduling=False,
            **memory,
            **spread(int(self.stage.facets.get("tensor_parallel", 1))),
            **({} if tokens is None else {"per_request_spec_decode_metrics": "summary"}),
        ) as llm:
            yield llm

    def _cell(
        self, plain: Any, speculating: Any, temperature: float, tokens: int, batch: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Measure a cell: return its entry of the artifact, and of the record.

        The run that counts is not timed: it is the first in these batches, and kernels are made on the way. The timed
        ones must answer as it did.
        """
        name = f"temperature {temperature:g}, {tokens} speculative tokens, batches of {batch}"

        def answer(llm: Any) -> Pass:
            return closed_loop(
                llm,
                self.prompts,
                batch=batch,
                max_tokens=self.max_tokens,
                temperature=temperature,
                done=self._step(name),
            )

        if (temperature, batch) not in self.plain:
            self.plain[temperature, batch] = answer(plain)
        alone, counted = self.plain[temperature, batch], answer(speculating)
        pairs = [(answer(plain), answer(speculating)) for _ in range(self.repeats)]
        for one, other in pairs:
            if (one.answers, other.answers, other.drafted) != (alone.answers, counted.answers, counted.drafted):
                self.stage.warn(f"{name}: two runs gave different answers, and the first of them counts")
                break
        same = len(self.prompts) - len(differences(alone.answers, counted.answers))
        cell = {
            "temperature": temperature,
            "speculative_tokens": tokens,
            "batch_size": batch,
            **measured(counted.drafted, counted.tokens),
            "subsets": {subset: self._subset(counted, subset) for subset in self._names()},
            "lossless": None if temperature else {"identical": same, "prompts": len(self.prompts)},
        }
        rates = [(one.tokens / one.seconds, other.tokens / other.seconds) for one, other in pairs]
        speedup, interval = paired([fast / slow for slow, fast in rates])
        speed = {
            "temperature": temperature,
            "speculative_tokens": tokens,
            "batch_size": batch,
            "tokens_per_second": round(sum(fast for _, fast in rates) / len(rates), 1),
            "plain_tokens_per_second": round(sum(slow for slow, _ in rates) / len(rates), 1),
            "speedup": round(speedup, 4),
            "interval": [round(end, 4) for end in interval],
            "repeats": self.repeats,
        }
        return cell, speed

    def _subset(self, found: Pass, name: str) -> dict[str, Any]:
        chosen = [index for index, subset in enumerate(self.subsets) if subset == name]
        tokens = sum(len(found.answers[index]) for index in chosen)
        return measured([found.drafted[index] for index in chosen], tokens)

    def _step(self, name: str) -> Callable[[], None]:
        """Return what says that one more answer is there."""

        def step() -> None:
            self.done += 1
            self.stage.progress(self.done, self.total, "answers", name)

        return step
