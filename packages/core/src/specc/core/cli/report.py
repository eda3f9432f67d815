"""What a report is of: the builds of a spec, or one artifact with all that it was made of and what measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from specc.core.algorithms import ALGORITHMS
from specc.core.cli.benchmarks import benchmark
from specc.core.cli.decisions import decided
from specc.core.cli.lineage import trace
from specc.core.cli.options import human, minutes, number
from specc.core.cli.page import Fact, Head, render, short
from specc.core.cli.sections import (
    Built,
    compared,
    date,
    evaluation,
    identical,
    lock_of,
    made,
    training,
    unique,
    values_of,
)
from specc.core.cli.show import never_built
from specc.core.compiler import Compiled, compile_builds
from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.files import flatten
from specc.core.judge import Verdict, judged
from specc.core.language.matrix import parts_of
from specc.core.lock import lock_path
from specc.core.measure.acceptance import exact
from specc.core.plan import ROWS
from specc.core.store import Store
from specc.core.store.manifests import SHORT

MEASURING: Final = ("evaluation", "benchmark")
"""Stages that nothing is made of: they are looked for by what they measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What a page says besides what the store has of its builds.

    `values` are resolved ones by dotted path with their origins (empty if they are not known), `checks` is the spec's
    section, `lock` the text of the lock, `stale` the stages that the spec would build anew, and `serve` what
    `specc serve` takes.
    """

    title: str
    values: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    checks: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lock: str | None = None
    stale: Sequence[str] = ()
    serve: str = ""


def report_of_spec(path: Path, only: Sequence[str]) -> str:
    """Return the page of what the last build of a spec made, or of the builds of its matrix.

    Raises `SpeccError` if there is nothing of them in the store.
    """
    builds = compile_builds(path)
    chosen = builds.chosen(only)
    names = _told_apart([compiled.build for compiled in chosen])
    built = [
        Built(name=name, stages=_last(compiled), store=compiled.store)
        for compiled, name in zip(chosen, names, strict=True)
    ]
    if not any(one.stages for one in built):
        raise never_built(chosen[0].name, chosen[0].store, path)
    lock = lock_path(path)
    trees = [flatten(compiled.resolved.values) for compiled in chosen]
    shared = {field: value for field, value in trees[0].items() if all(tree.get(field) == value for tree in trees)}
    stale = {decision.stage.name for decisions in decided(chosen) for decision in decisions if decision.due}
    return report(
        [one for one in built if one.stages],
        Sheet(
            title=str(chosen[0].lock.locked.values["name"]),
            values=shared,
            origins={field: _origin(origin, path) for field, origin in chosen[0].resolved.origins.items()},
            checks=chosen[0].lock.locked.values.get("checks") or {},
            lock=lock.read_text(encoding="utf-8") if lock.is_file() else None,
            stale=[stage for stage in ROWS if stage in stale],
            serve=path.name,
        ),
    )


def report_of_artifact(target: str) -> str:
    """Return the page of an artifact by (the start of) its ID: what it was made of, and what measured it."""
    store = Store.locate(Path.cwd() / "spec.yaml")
    manifest = store.manifest(store.resolve(target))
    found: dict[str, Manifest] = {}
    for node in trace(store, [manifest]).nodes.values():
        if node.stage is not None:
            found[node.stage] = store.manifest(node.digest, node.key)
    found |= _measuring(store, found.get("checkpoint"), found)
    params: Mapping[str, Any] = (found.get("checkpoint") or manifest).params
    values = flatten({name: value for name, value in params.items() if name != "stages"})
    title = str(params.get("name") or f"{manifest.stage} {manifest.digest[:SHORT]}")
    return report(
        [Built(name="", stages=found, store=store)],
        Sheet(title=title, values=values, serve=manifest.digest[:SHORT]),
    )


def _last(compiled: Compiled) -> dict[str, Manifest]:
    """Return what the last build of a spec had for each stage."""
    known = ((stage, compiled.store.last(compiled.name, stage)) for stage in ROWS)
    return {stage: item for stage, item in known if item is not None}


def _measuring(store: Store, checkpoint: Manifest | None, found: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Return the last evaluation and benchmark of a checkpoint, if they are not among what was found."""
    if checkpoint is None:
        return {}
    here = set(store.digests())
    of_it = [
        item
        for item in store.indexed()
        if item.stage in MEASURING and item.digest in here and checkpoint.digest in item.inputs.values()
    ]
    of_it.sort(key=lambda item: int(store.record(item.key).get("order", 0)))
    return {item.stage: item for item in of_it if item.stage not in found}


def _told_apart(builds: Sequence[str]) -> list[str]:
    """Return short names for builds: of their `field=value`, the value of one field if that tells them apart."""
    parts = [dict(part.split("=", 1) for part in parts_of(build)) for build in builds]
    differing = [name for name in dict.fromkeys(name for one in parts for name in one)
                 if len({one.get(name) for one in parts}) > 1]  # fmt: skip
    alone = [name for name in differing if len({one.get(name) for one in parts}) == len(parts)]
    if alone and all(alone[0] in one for one in parts):
        return [one[alone[0]] for one in parts]
    return [", ".join(f"{name.rpartition('.')[2]} {one[name]}" for name in differing if name in one) for one in parts]


def _origin(origin: str, spec: Path) -> str:
    """Return where a value is from, without the folder that the spec is in on this machine."""
    return origin.replace(f"{spec.parent}/", "") if str(spec.parent) != "." else origin


def report(builds: Sequence[Built], sheet: Sheet) -> str:
    """Return the page of some builds; of a single one with its digest and verdicts.

    Raises `SpeccError` (exit code 4) if what an artifact says that it measured is nothing that a stage writes.
    """
    try:
        return _report(builds, sheet)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise SpeccError(
            "what an artifact says that it measured cannot be read",
            where=str(builds[0].store.root),
            hint="`specc verify` hashes the artifacts again",
            code=Exit.DIFFERENCE,
        ) from error


def _report(builds: Sequence[Built], sheet: Sheet) -> str:
    sections = [
        *([compared(builds)] if len(builds) > 1 else []),
        training(builds),
        evaluation(builds),
        *(benchmark(one.measured("benchmark"), one.record("benchmark").get("benchmark") or {}, one.name)
          for one in builds if one.measured("benchmark")),
        made(builds),
        values_of(sheet.values, sheet.origins, many=len(builds) > 1),
        lock_of(sheet.lock),
    ]  # fmt: skip
    only = builds[0] if len(builds) == 1 else None
    stages = list(only.stages.values()) if only else []
    last = next((item for item in stages if item.stage == "checkpoint"), stages[-1] if stages else None)
    head = Head(
        title=short(sheet.title),
        about=_about(builds, sheet.values),
        digest=f"{last.stage} sha256:{last.digest}" if last else "",
        serve=sheet.serve if last and last.stage == "checkpoint" else "",
        verdicts=_verdicts(only, sheet.checks) if only else [],
        stale=sheet.stale,
        facts=_facts(only) if only else _best(builds),
    )
    return render(head, [section for section in sections if section is not None])


def _about(builds: Sequence[Built], values: Mapping[str, Any]) -> list[str]:
    """Return what the builds are of, when they were made, and on what, in a few words each."""
    named = str(values.get("draft.algorithm") or "")
    row = ALGORITHMS.get(named)
    verifier = values.get("verifier.name") or values.get("verifier.model")
    what = f"{len(builds)} builds" if len(builds) > 1 else f"{row.title if row else named} draft" if named else ""
    records = [one.store.record(item.key) for one in builds for item in unique([one]).values()]
    started = [str(record["started"]) for record in records if "started" in record]
    facets: dict[str, Any] = {}
    for one in builds:
        for item in one.stages.values():
            facets |= item.facets
    machine = " ".join(str(facets[name]) for name in ("device", "isa") if name in facets)
    threads = f"{facets['threads']} threads" if "threads" in facets else ""
    return [text for text in (
        f"{what} for {short(str(verifier))}" if what and verifier else what,
        f"built {date(max(started))}" if started else "",
        ", ".join(part for part in (machine, threads) if part),
    ) if text]  # fmt: skip


def _verdicts(build: Built, checks: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """Return whether each of the spec's checks is met, and the check in words."""
    evaluation = build.measured("evaluation")
    try:
        verdicts = judged(checks, evaluation) if evaluation else []
    except (KeyError, TypeError, ValueError):  # of another release, which measured other things
        return []
    return [(one.met, f"{_asked(one)}: {'' if one.met else 'not met, '}{one.found}") for one in verdicts]


def _asked(verdict: Verdict) -> str:
    words = verdict.name.replace("_", " ")
    return words if verdict.asked == "true" else f"{words} {verdict.asked}"


def _facts(build: Built) -> list[Fact]:
    evaluation, record = build.measured("evaluation"), build.record("draft")
    served, untrained = evaluation.get("served") or {}, evaluation.get("untrained") or {}
    found: list[Fact] = []
    if served:
        how = f"{evaluation.get('runtime', 'engine')}, {served.get('drafts', 0):,} drafts, untrained"
        found.append(Fact("mean acceptance length", number(build.acceptance),
                          f"{how} {number(untrained.get('mean_acceptance_length'), 2)}"))  # fmt: skip
    if same := exact(evaluation):
        found.append(Fact("greedy output identical", identical(same), "prompts, in fp32"))
    advice = (build.record("benchmark").get("benchmark") or {}).get("advice") or []
    if advice:
        best: Mapping[str, Any] = max(advice, key=itemgetter("speedup"))
        where = f"at batch {best['batch_size']}, {best['speculative_tokens']} tokens a draft"
        found.append(Fact("speed-up", f"{best['speedup']:.2f}×", where))
    if build.kept:
        found.append(Fact("validation loss", number(build.kept.get("validation_loss"), 2),
                          f"epoch {build.kept['epoch']} of {len(build.epochs) - 1}"))  # fmt: skip
    if "seconds" in record:
        rate = record.get("tokens_per_second")
        found.append(Fact("training", minutes(record["seconds"]), f"{rate:,.0f} tokens/s" if rate else ""))
    if "checkpoint" in build.stages:
        found.append(Fact("checkpoint", human(build.stages["checkpoint"].size), ""))
    return found


def _best(builds: Sequence[Built]) -> list[Fact]:
    ranked = [one for one in builds if one.acceptance is not None]
    if not ranked:
        return []
    best = max(ranked, key=lambda one: one.acceptance or 0)
    seconds = [float(one.record("draft").get("seconds", 0.0)) for one in builds]
    return [Fact("longest acceptance", number(best.acceptance), best.name), Fact("builds", str(len(builds)), ""),
            Fact("training in all", minutes(sum(seconds)), "")]  # fmt: skip
