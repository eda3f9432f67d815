"""Run a plan: one thread of execution, stage by stage, each decided again once its inputs are there."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from specc.core.contracts import Input, Manifest, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.execute.attendants import Attendant, workers
from specc.core.execute.executor import run_stage, run_worker
from specc.core.execute.machine import installed
from specc.core.execute.reporter import Reporter
from specc.core.loggers import require
from specc.core.plan import Decision, Plan, PlannedStage, StageRow, before, decide_stage, lineage, named
from specc.core.plan.stages import OF_A_MACHINE
from specc.core.resolve import missing_file, offline
from specc.core.store import Store

ADDRESS: Final = re.compile(r"https?://[^\s/@?#]+(/[^\s?#@]*)?")
"""What `SPECC_ENDPOINT` may be, as `runtime.datagen.endpoint` may."""
FETCHED: Final = {
    "verifier": "the verifier",
    "conversations": "the data set",
    "converted": "the source",
    "prompts": "the data set",
}
"""What a stage fetches from a hub, in words."""


def build(
    plan: Plan,
    store: Store,
    *,
    values: Mapping[str, Any],
    files: Mapping[str, Path],
    reporter: Reporter,
    hold: Callable[[str], None],
    until: str | None = None,
    force: bool = False,
    fresh: set[str] | None = None,
    log: bool = True,
) -> dict[str, Decision]:
    """Build what is missing of a plan and return every stage's decision with its artifact's digest.

    `hold` is the store's lease, which keeps an artifact from `gc` for as long as the caller needs what was built.
    A finished build keeps the action that led to it (`build`), so that a caller can tell it from a `hit`.
    `until` names the last stage wanted; stages that it does not need are left alone. With `force`, what is there is
    built again (with `until`, that stage alone), which must come out the same; but not what has a key in `fresh`, to
    which the keys of what is built are added: what several builds of a matrix share is built once. `log` lets a
    training tell the loggers that its spec names. Raises `SpeccError` before anything starts when an engine, a logger
    or a file that will surely be needed is missing, and before a stage starts when one of its inputs is not what was
    sealed (exit code 4).
    """
    wanted = plan.stages if until is None else _needed(plan, until)
    done: dict[str, Decision] = {}
    fresh = set() if fresh is None else fresh
    forced = {stage.name for stage in wanted if force and until in (None, stage.name)}
    foreseen = _foresee(plan, wanted, store)
    if until is not None and foreseen[-1].action == "stream":
        raise SpeccError(
            f"`{until}` is computed while `draft` trains, and there is no artifact of it to build",
            hint="`--stage draft` builds the draft; `data: {hidden_states: disk}` keeps them",
        )
    running = {name for one in foreseen if one.due for name in one.stage.row.inputs.values()}
    for decision in foreseen:
        name = decision.stage.name
        if decision.action == "build" or name in forced or (decision.action == "stream" and name in running):
            _require(decision.stage, values, files)
            if log:
                require(decision.stage.row.context.get("loggers", ()))
    for stage in wanted:
        held = False
        while not held:  # more than once only when `gc` came between
            decision = done[stage.name] = decide_stage(plan, stage, done, store)
            if decision.action == "stream":
                break
            again = stage.name in forced and decision.key not in fresh
            if decision.action != "hit" or again:
                manifest = _run(plan, decision, done, store=store, files=files, reporter=reporter, again=again, log=log)
                decision = replace(decision, action="build", digest=manifest.digest)
                fresh.add(decision.key or "")
            hold(decision.digest or "")
            held = store.find(stage.name, decision.key or "") == decision.digest
            done[stage.name] = decision
        found = done[stage.name]
        if store.writable and found.digest:  # else nothing was built, and nobody else's store says what was found
            store.note_last(plan.name, stage.name, store.manifest(found.digest, found.key))
    if store.writable and (last := done.get(plan.last)) and last.digest:
        store.name_ref(plan.name, last.digest)
    return done


def assist(
    plan: Plan, store: Store, *, values: Mapping[str, Any], files: Mapping[str, Path], reporter: Reporter, stage: str
) -> None:
    """Be a worker of a stage that is built elsewhere: make shards of it until all of them are there.

    Raises `SpeccError` if the stage is made of no shards, or what it reads is not in the store yet.
    """
    done: dict[str, Decision] = {}
    for one in _needed(plan, stage):
        done[one.name] = decide_stage(plan, one, done, store)
    decision, row = done[stage], done[stage].stage.row
    if not row.shared:
        raise SpeccError(f"`{stage}` is not made of shards that several workers make")
    if decision.action == "hit":
        return
    if decision.key is None:
        raise SpeccError(
            f"what `{stage}` reads is not in the store yet: {', '.join(f'`{name}`' for name in decision.waits_for)}",
            where=str(store.root),
            hint="a worker helps with one stage; build those before it first",
        )
    _require(decision.stage, values, files)
    job, _ = _job(plan, decision, done, store=store, files=files, again=False, log=False)
    name = f"worker-{platform.node()}-{os.getpid()}"
    run_worker(job, package=row.package, store=store, reporter=reporter, name=name)


def build_alone(
    stage: PlannedStage,
    digests: Mapping[str, str],
    store: Store,
    *,
    name: str,
    files: Mapping[str, Path],
    reporter: Reporter,
    hold: Callable[[str], None],
) -> Manifest:
    """Build one stage that is in no plan, if its artifact is not there, and return how it came about.

    `digests` are its inputs' by the stages that made them. Raises `SpeccError` as `build` does.
    """
    inputs = {name: Decision(stage=stage, action="hit", key=None, digest=found) for name, found in digests.items()}
    key = stage.key(digests, {})
    digest = store.find(stage.name, key)
    if digest is None:
        _require(stage, {}, files)
        plan = Plan(name=name, numerics="", stages=(stage,))
        decision = Decision(stage=stage, action="build", key=key)
        digest = _run(plan, decision, inputs, store=store, files=files, reporter=reporter, again=False, log=True).digest
    hold(digest)
    return store.manifest(digest, key)


def _foresee(plan: Plan, wanted: tuple[PlannedStage, ...], store: Store) -> list[Decision]:
    decisions: dict[str, Decision] = {}
    for stage in wanted:
        decisions[stage.name] = decide_stage(plan, stage, decisions, store)
    return list(decisions.values())


def _needed(plan: Plan, until: str) -> tuple[PlannedStage, ...]:
    by_name = {stage.name: stage for stage in plan.stages}
    if until not in by_name:
        raise SpeccError(f"this spec has no stage `{until}`", hint=f"its stages are: {', '.join(by_name)}")
    wanted, waiting = set[str](), [until]
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += by_name[name].row.inputs.values()
    return tuple(stage for stage in plan.stages if stage.name in wanted)


def _require(stage: PlannedStage, values: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Raise `SpeccError` if a file or an engine that the stage's key names is not here."""
    for name in stage.row.files:
        if name not in files:
            raise missing_file(name, values)
    if "hub" in stage.row.context and offline():
        raise SpeccError(
            f"{FETCHED[stage.name]} `{stage.row.context['hub']['repo']}` is not in the store, and `--offline` (or"
            " `HF_HUB_OFFLINE`) forbids to fetch it",
            hint=f"build its stage once where there is a network: `specc build --stage {stage.name}`",
        )
    if "endpoint" in stage.row.context:
        _address(stage)
    device = stage.facets.get("device", "cpu")
    if stage.row.devices is not None and device not in stage.row.devices:
        where = f", and does on `{stage.row.devices[0]}`" if stage.row.devices else ""
        raise SpeccError(
            f"the stage `{stage.name}` measures speeds in vLLM, which does not run this draft on `{device}`{where}",
            hint="remove `evaluate.grid`: the evaluation counts what is accepted without vLLM too",
        )
    pins = {name: str(pin) for name, pin in stage.facets.items() if name not in OF_A_MACHINE}
    here = installed(pins)
    wrong = {name: here[name] for name, pin in pins.items() if here[name] != pin}
    if not wrong:
        return
    name, found = next(iter(wrong.items()))
    extra = "cuda" if "vllm" in stage.facets else "cpu"
    raise SpeccError(
        f"the stage `{stage.name}` needs {name} {pins[name]}, and {found or 'none'} is installed",
        note="the engines' versions decide the bits of a result, so the lock pins them",
        hint=f"`pip install 'specc[{extra}]'` brings the engines of this release, and `specc lock --upgrade engines`"
        " pins them in the spec's lock",
        code=Exit.STAGE,
    )


def _address(stage: PlannedStage) -> str:
    """Return where the endpoint of a stage is; raises `SpeccError` if nobody says."""
    endpoint: Mapping[str, Any] = stage.row.context["endpoint"]
    found = endpoint["address"] or os.environ.get("SPECC_ENDPOINT")
    if not found:
        raise SpeccError(
            f"nothing says where the endpoint is that serves `{endpoint['model']}`",
            hint="`runtime: {datagen: {endpoint: 'http://127.0.0.1:8000/v1'}}` in a profile says it, or the environment"
            " variable `SPECC_ENDPOINT`",
        )
    if not ADDRESS.fullmatch(found):
        raise SpeccError(
            "`SPECC_ENDPOINT` is no address of a server",
            hint="it is such as `http://127.0.0.1:8000/v1`; a key stands in `OPENAI_API_KEY` alone",
        )
    return found


def _run(
    plan: Plan,
    decision: Decision,
    done: Mapping[str, Decision],
    *,
    store: Store,
    files: Mapping[str, Path],
    reporter: Reporter,
    again: bool,
    log: bool,
) -> Manifest:
    """Run one stage whose inputs are all there."""
    row = decision.stage.row
    job, attendants = _job(plan, decision, done, store=store, files=files, again=again, log=log)
    if row.workers > 1:
        job, attendants = workers(job, row.package, row.workers)
    return run_stage(job, package=row.package, store=store, reporter=reporter, name=plan.name, again=again,
                     attendants=attendants)  # fmt: skip


def _job(
    plan: Plan,
    decision: Decision,
    done: Mapping[str, Decision],
    *,
    store: Store,
    files: Mapping[str, Path],
    again: bool,
    log: bool,
) -> tuple[StageJob, list[Attendant]]:
    """Return the job of a stage whose inputs are all there, and what is to run beside it."""
    stage, key = decision.stage, decision.key
    if key is None:  # every input was built or found before its user's turn came
        raise AssertionError(stage.name)
    row, context = stage.row, dict(stage.row.context)
    if "endpoint" in context:
        context["endpoint"] = {**context["endpoint"], "address": _address(stage)}
    ancestry = lineage(stage, done) if row.lineage else {}
    inputs = dict[str, Input]()
    for slot, source in row.inputs.items():
        inputs[slot] = _input(source, row, done, store)
    attendants = list[Attendant]()
    for slot, source in row.inputs.items():
        if done[source].action == "stream":
            folder = store.work(row.name, key) / "stream"
            inputs[slot] = replace(inputs[slot], path=str(folder))
            attendants += _producers(done[source], folder, done, store)
    if (earlier := before(stage)) is not None and not again:
        other = earlier.key(named(stage, done), ancestry)
        context["earlier"] = {"key": other, "work": str(store.work(row.name, other, make=False))}
    if "loggers" in context and not log:
        del context["loggers"]
    elif "loggers" in context:
        context |= {"label": plan.name, "log_folder": str(store.log(key).with_suffix(""))}
    job = StageJob(
        stage=row.name,
        version=row.version,
        key=key,
        params=stage.params(ancestry),
        facets=stage.facets,
        inputs=inputs,
        files={name: str(files[name].resolve()) for name in row.files},
        output="",
        work=str(store.work(row.name, key)),
        units=str(store.units(row.name)),
        context=context,
    )
    return job, attendants


def _input(source: str, row: StageRow, done: Mapping[str, Decision], store: Store) -> Input:
    """Return what a stage reads of another; raises `SpeccError` if it is not what was sealed."""
    found = done[source]
    key = found.key if source in row.by_key else None
    if found.action == "stream":
        return Input(path="", digest="", key=key)
    digest = found.digest or ""
    store.require(digest, source)
    return Input(path=str(store.path(digest)), digest=digest, key=key)


def _producers(decision: Decision, folder: Path, done: Mapping[str, Decision], store: Store) -> list[Attendant]:
    """Return the processes that make what a streamed stage has no artifact of, in `folder`, while another reads it."""
    row = decision.stage.row
    job = StageJob(
        stage=row.name,
        version=row.version,
        key=decision.key or "",
        params=decision.stage.params({}),
        facets=decision.stage.facets,
        inputs={slot: _input(source, row, done, store) for slot, source in row.inputs.items()},
        files={},
        output="",
        work="",
        units=str(store.units(row.name)),
        context={**row.context, "stream": str(folder)},
    )
    jobs = [replace(job, context={**job.context, "share": (number, row.workers)}) for number in range(row.workers)]
    return [Attendant(name=f"producer-{number}", package=row.package, job=one) for number, one in enumerate(jobs, 1)]
