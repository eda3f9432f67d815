"""`specc build`: run what is missing, in order, and say what came out."""

from __future__ import annotations

import fcntl
import json as jsonlib
import os
import shlex
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from specc.core import lock as locks
from specc.core.cli.compare import compared, table
from specc.core.cli.decisions import class_of_profile, decided, estimate_data, refuse_unrunnable
from specc.core.cli.measured import tables
from specc.core.cli.options import ONLY, PROFILE, SPEC, as_json, minutes, print_json, words
from specc.core.compiler import Builds, Compiled, Trust, compile_builds, compile_spec, estimates, with_results
from specc.core.errors import Exit, SpeccError, SpeccErrors
from specc.core.execute import Reporter, assist, build, machine_name, terminable
from specc.core.files import storage_error
from specc.core.judge import Verdict, judge
from specc.core.lock import Lock, Locks
from specc.core.measure.acceptance import greedy
from specc.core.plan import ROWS, Decision, Estimate, read_json, total
from specc.core.store.manifests import repeats

_RUNTIMES: Final[Mapping[str, str]] = {"vllm": "vllm", "reference": "the reference decoder"}
"""What answered an evaluation's prompts, in words."""


@click.command("build", short_help="build what is missing")
@SPEC
@click.option("--locked", is_flag=True, help="Fail when the lock is stale; write no lock.")
@click.option("--frozen", is_flag=True, help="Build the lock as it is, without comparing it with the spec.")
@click.option("--stage", type=click.Choice(list(ROWS)), help="Build this stage and what it needs, no further.")
@click.option("--force", is_flag=True, help="Build again what is there (with --stage, that one), and compare.")
@click.option("--offline", is_flag=True, help="Ask no hub; fail when something would have to be fetched.")
@click.option("--worker", is_flag=True, help="Make shards of --stage for a build of it that runs elsewhere.")
@click.option("--keep-going", is_flag=True, help="Of a spec with a matrix, go on with the next build when one fails.")
@PROFILE
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    spec: Path,
    locked: bool,
    frozen: bool,
    stage: str | None,
    force: bool,
    offline: bool,
    worker: bool,
    keep_going: bool,
    profile: Path | None,
    only: tuple[str, ...],
    json: bool,
) -> int:
    """Build SPEC: run the stages whose artifacts are not in the store, and judge its checks.

    Of a spec with a matrix all builds are made, one after another; what they share is built once.
    """
    trust: Trust = "frozen" if frozen else "locked" if locked else "update"
    if worker:
        return _work(spec, trust="frozen" if frozen else "locked", profile=profile, only=only, stage=stage)
    with making(
        spec, trust=trust, stage=stage, force=force, offline=offline, keep_going=keep_going, profile=profile, only=only
    ) as built:
        if json:
            _print(built.made, built.verdicts, built.seconds, built.said)
        elif built.made:
            _summary(built.made, built.verdicts, stage, built.took)
    return built.end()


def _work(spec: Path, *, trust: Trust, profile: Path | None, only: Collection[str], stage: str | None) -> int:
    """Be a worker of a stage; whoever builds it puts the artifact together."""
    if stage is None:
        raise SpeccError("a worker helps with one stage", hint="`--stage hidden_states --worker`", code=Exit.USAGE)
    compiled = compile_spec(spec, trust=trust, machine=machine_name(), profile=profile, only=only)
    values, files = compiled.values, compiled.resolved.files
    assist(compiled.plan, compiled.store, values=values, files=files, reporter=Reporter(), stage=stage)
    return Exit.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of a spec's builds: those that came to their end with their checks, and the errors of the others.

    `said` is what the plan said of the stages that ran, None if all was there.
    """

    made: Sequence[Made]
    verdicts: Sequence[Sequence[Verdict]]
    errors: Sequence[SpeccError]
    seconds: float
    said: Estimate | None

    @property
    def took(self) -> str | None:
        """What it took in words, None if nothing was to be done."""
        return f"took {minutes(self.seconds)}; the plan said {minutes(self.said.seconds)}" if self.said else None

    def end(self) -> int:
        """Return the exit code; raises `SpeccError` if a build failed."""
        if self.errors:
            raise SpeccErrors(list(self.errors))
        return Exit.OK if all(verdict.met for some in self.verdicts for verdict in some) else Exit.INPUT


@contextmanager
def making(
    spec: Path,
    *,
    trust: Trust,
    profile: Path | None,
    only: Collection[str],
    stage: str | None = None,
    force: bool = False,
    offline: bool = False,
    keep_going: bool = False,
) -> Generator[Built]:
    """Build a spec, and keep what was built from `gc` for as long as the caller looks at it."""
    started = time.monotonic()
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    builds = compile_builds(spec, trust=trust, machine=machine_name(), profile=profile)
    chosen = builds.chosen(only)
    # Not all builds of a matrix need have a stage; where none has, the first one says so.
    chosen = [one for one in chosen if stage in (None, *(planned.name for planned in one.plan.stages))] or chosen
    if trust == "update":
        _record(builds, {}, builds.before)
    if changed := class_of_profile(chosen[0]):
        words(changed)
    refuse_unrunnable(chosen)
    work = force or any(decision.due for decisions in decided(chosen) for decision in decisions)
    expected = estimates(chosen) if work else {}
    made: list[Made] = []
    fresh: set[str] = set()
    errors: list[SpeccError] = []
    store = chosen[0].store
    with terminable(), store.lease() as hold:
        for number, compiled in enumerate(chosen, start=1):
            if compiled.build:
                words(f"[{number}/{len(chosen)}] {compiled.build}")
            try:
                done = build(
                    compiled.plan,
                    store,
                    values=compiled.values,
                    files=compiled.resolved.files,
                    reporter=Reporter(),
                    hold=hold,
                    until=stage,
                    force=force,
                    fresh=fresh,
                )
                one = Made(compiled, done)
                _compare(compiled, compiled.lock, one.found)
                if trust == "update" and one.ran:  # whatever comes later, it is noted
                    _record(builds, {compiled.build: one.found}, builds.locks)
                for name in ("evaluation", "benchmark"):
                    if digest := one.found.get(name):
                        store.require(digest, name)  # it is read below
                made.append(one)
            except SpeccError as error:
                if not keep_going:
                    raise
                words(error.render())
                errors.append(error)
        if trust == "update" and (rest := {one.compiled.build: one.found for one in made if not one.ran}):
            _record(builds, rest, builds.locks)
        verdicts = [judge(one.compiled, one.done) for one in made]
        seconds, said = time.monotonic() - started, None
        if ran := {recipe for one in made for recipe in one.ran}:
            expected = expected or estimates(chosen)  # what was there is gone meanwhile
            said = total(expected[recipe] for recipe in ran)
        yield Built(made=made, verdicts=verdicts, errors=errors, seconds=seconds, said=said)


@dataclass(frozen=True, slots=True)
class Made:
    """A build that came to its end."""

    compiled: Compiled
    done: Mapping[str, Decision]

    @property
    def found(self) -> dict[str, str]:
        """The digests of its stages' artifacts."""
        return {name: decision.digest for name, decision in self.done.items() if decision.digest}

    @property
    def ran(self) -> list[str]:
        """The recipes of the stages that were not there."""
        return [decision.stage.recipe for decision in self.done.values() if decision.due]


def _print(made: Sequence[Made], verdicts: Sequence[Sequence[Verdict]], seconds: float, said: Estimate | None) -> None:
    """Print what came out as data: one build's artifacts and checks, or those of each build of a matrix."""
    found = [
        {
            "artifacts": {name: f"sha256:{digest}" for name, digest in one.found.items()},
            "checks": [verdict.as_json() for verdict in some],
        }
        for one, some in zip(made, verdicts, strict=True)
    ]
    names = [one.compiled.build for one in made]
    print_json(
        {
            "name": str(made[0].compiled.lock.locked.values["name"]) if made else None,
            **(found[0] if names == [""] else {"builds": dict(zip(names, found, strict=True))}),
            "seconds": round(seconds, 1),
            "estimate": estimate_data(said) if said else None,
        }
    )


def _record(builds: Builds, found: Mapping[str, dict[str, str]], expected: Locks | None) -> None:
    """Write the lock with what its builds found, on top of what other processes have noted there meanwhile.

    A lock that is neither ours nor the `expected` one is another's, who knows better, and is left as it is. Raises
    `SpeccError` if the lock cannot be written, or if it has another digest by now (exit code 4).
    """
    path, ours = builds.lock_path, dict(builds.locks)
    with _alone(path.absolute().parent):
        there = locks.read(path)
        if there is not None and _same(there, ours):
            for compiled in builds.every:
                _compare(compiled, there[compiled.build], found.get(compiled.build, {}))
            ours = {name: replace(lock, results={**lock.results, **there[name].results}) for name, lock in ours.items()}
        elif there is not None and (expected is None or not _same(there, expected)):
            words(f"the lock {path.name} was changed meanwhile, and stays so: `specc build {builds.path}` notes in it"
                  " what this build found")  # fmt: skip
            return
        numerics = {compiled.build: compiled.plan.numerics for compiled in builds.every}
        ours |= {name: with_results(ours[name], numerics[name], digests) for name, digests in found.items() if digests}
        try:
            locks.write(path, ours)
        except OSError as error:
            raise storage_error(
                OSError(error.errno, error.strerror, path.name),
                path.absolute().parent,
                "build with `--locked`, which writes no lock",
            ) from error


def _same(one: Locks, two: Locks) -> bool:
    """Tell whether two locks pin the same, whatever builds found."""
    plain = [locks.dump({name: replace(lock, results={}) for name, lock in some.items()}) for some in (one, two)]
    return plain[0] == plain[1]


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep other builds from writing a lock in a folder meanwhile (flock(2)).

    Where the file system has no locks, of two builds that end at once one may lose what it found; the next one
    finds it in the store.
    """
    with ExitStack() as held:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compare(compiled: Compiled, lock: Lock, found: dict[str, str]) -> None:
    """Raise `SpeccError` (exit 4) when a stage came out otherwise than the lock has it for this class."""
    plan = compiled.plan
    known = lock.results.get(plan.numerics, {})
    wrong = [name for name, digest in found.items() if known.get(name, digest) != digest]
    if wrong:
        first = wrong[0]
        stage = next(stage for stage in plan.stages if stage.name == first)
        raise SpeccError(
            f"the stage `{first}` came out as sha256:{found[first][:12]}…, and the lock has sha256:{known[first][:12]}…"
            f" for the class `{plan.numerics}`",
            where=compiled.lock_path.name,
            note="nothing that decides its bits has changed, so this is a difference to be explained"
            if repeats(first, stage.row.params)
            else "answers of an endpoint do not repeat: those that the lock has are in the store of who built them",
            hint=f"`specc show {found[first][:12]}` shows the artifact; if the lock is wrong, `specc lock --upgrade"
            f" {compiled.path}` drops its results",
            code=Exit.DIFFERENCE,
        )


def _summary(made: Sequence[Made], verdicts: Sequence[Sequence[Verdict]], stage: str | None, took: str | None) -> None:
    """Say what came out: a checkpoint, or those of a matrix side by side."""
    if len(made) > 1:
        words(f"{len(made)} builds" if took else f"nothing to do: {len(made)} builds")
        for line in table(compared((one.compiled, list(one.done.values())) for one in made)):
            click.echo(line)
        if took:
            words(f"  {took}")
    for one, some in zip(made, verdicts, strict=True):
        if len(made) == 1:
            _one(one, stage, took)
        for verdict in some:
            words(f"  {f'{one.compiled.build}: ' if len(made) > 1 else ''}{verdict.line()}")
    if len(made) == 1 and stage in (None, "checkpoint", "evaluation", "benchmark"):
        words(f"  serve it: specc serve {_only(made[0].compiled)}{made[0].compiled.path}")
    if any(not verdict.met for some in verdicts for verdict in some):
        words("\nbuilt, checks failed")


def _only(compiled: Compiled) -> str:
    """Return the option that chooses a build of a matrix, with the space after it."""
    return f"--only {shlex.quote(compiled.build)} " if compiled.build else ""


def _one(made: Made, stage: str | None, took: str | None) -> None:
    """Say what came out of one build: the checkpoint, what it `took` if it was built, and what was measured."""
    compiled, done = made.compiled, made.done
    last = done[stage] if stage else done.get("checkpoint") or list(done.values())[-1]
    digest = last.digest or ""
    words(f"{'built' if took else 'nothing to do'}: {last.stage.name} sha256:{digest}")
    click.echo(_short(compiled.store.path(digest)))
    if took:
        words(f"  {took}")
    for line in measured(made):
        words(f"  {line}")
    for line in benchmarked(made):
        words(f"  {line}".rstrip())


def benchmarked(made: Made) -> list[str]:
    """Return a build's benchmark as tables, if it has one."""
    decision = made.done.get("benchmark")
    if decision is None or not decision.digest:
        return []
    store = made.compiled.store
    record = store.record(decision.key) if decision.key else {}
    return tables(read_json(store, decision.digest, "benchmark.json"), record.get("benchmark"))


def measured(made: Made) -> list[str]:
    """Return what a build's evaluation measured in sentences, if it has one."""
    if (digest := made.found.get("evaluation")) is None:
        return []
    found: dict[str, Any] = jsonlib.loads((made.compiled.store.path(digest) / "evaluation.json").read_text())
    served, untrained, simulated = found["served"], found["untrained"], found["simulated"]
    lines = [
        f"mean acceptance length {served['mean_acceptance_length']:.2f} in {_RUNTIMES[found['runtime']]}"
        f" ({found['prompts']} held-out prompts, {found['speculative_tokens']} speculative tokens,"
        f" {served['drafts']} drafts); untrained {untrained['mean_acceptance_length']:.2f}",
        f"simulated on the same rows {simulated['mean_acceptance_length']:.2f} ({simulated['drafts']} drafts)",
    ]
    for dtype, lossless in greedy(found).items():
        differ = lossless["prompts"] - lossless["identical"]
        what = "identical" if not differ else f"{lossless['identical']} identical, {differ} with a first difference"
        lines.append(f"greedy output with and without the speculator in {dtype}: {lossless['prompts']} prompts, {what}")
    return lines


def _short(path: Path) -> str:
    """Return a path relative to the working directory where it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
