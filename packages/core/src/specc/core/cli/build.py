"""`specc build`: run what is missing, in order, and say what came out."""

from __future__ import annotations

import fcntl
import json as jsonlib
import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from specc.core import lock as locks
from specc.core.cli.decisions import estimate_data
from specc.core.cli.options import SPEC, as_json, minutes, print_json, words
from specc.core.compiler import Compiled, Trust, compile_spec, with_results
from specc.core.errors import Exit, SpeccError
from specc.core.execute import Reporter, build, machine_name, terminable
from specc.core.files import storage_error
from specc.core.judge import Verdict, judge
from specc.core.lock import Lock
from specc.core.plan import ROWS, Decision, decide, total


@click.command("build", short_help="build what is missing")
@SPEC
@click.option("--locked", is_flag=True, help="Fail when the lock is stale; write no lock.")
@click.option("--frozen", is_flag=True, help="Build the lock as it is, without comparing it with the spec.")
@click.option("--stage", type=click.Choice(list(ROWS)), help="Build this stage and what it needs, no further.")
@click.option("--force", is_flag=True, help="Build again what is there (with --stage, that one), and compare.")
@click.option("--offline", is_flag=True, help="Ask no hub; fail when something would have to be fetched.")
@as_json
def command(  # noqa: PLR0917 - click passes by name
    spec: Path, locked: bool, frozen: bool, stage: str | None, force: bool, offline: bool, json: bool
) -> int:
    """Build SPEC: run the stages whose artifacts are not in the store, and judge its checks."""
    started = time.monotonic()
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    trust: Trust = "frozen" if frozen else "locked" if locked else "update"
    compiled = compile_spec(spec, trust=trust, machine=machine_name())
    if trust == "update":
        _record(compiled, {}, compiled.before)
    plan = compiled.plan()
    work = force or any(decision.action != "hit" for decision in decide(plan, compiled.store))
    expected = compiled.estimates() if work else {}
    with terminable(), compiled.store.lease() as hold:
        done = build(
            plan,
            compiled.store,
            values=compiled.lock.locked.values,
            files=compiled.resolved.files,
            reporter=Reporter(),
            hold=hold,
            until=stage,
            force=force,
        )
        found = {name: decision.digest for name, decision in done.items() if decision.digest}
        _compare(compiled, compiled.lock, found)
        if trust == "update":
            _record(compiled, found, compiled.lock)
        if digest := found.get("evaluation"):
            compiled.store.require(digest, "evaluation")  # it is read below
        verdicts = judge(compiled, done)
        seconds, said = time.monotonic() - started, None
        if built := [name for name, decision in done.items() if decision.action != "hit"]:
            expected = expected or compiled.estimates()  # what was there is gone meanwhile
            said = total(expected[name] for name in built)
        if json:
            print_json(
                {
                    "name": compiled.name,
                    "artifacts": {name: f"sha256:{digest}" for name, digest in found.items()},
                    "checks": [verdict.as_json() for verdict in verdicts],
                    "seconds": round(seconds, 1),
                    "estimate": estimate_data(said) if said else None,
                }
            )
        else:
            took = f"took {minutes(seconds)}; the plan said {minutes(said.seconds)}" if said else None
            _summary(compiled, done, verdicts, stage, took)
    return Exit.OK if all(verdict.met for verdict in verdicts) else Exit.INPUT


def _record(compiled: Compiled, found: dict[str, str], expected: Lock | None) -> None:
    """Write the lock with what this build found, on top of what other builds have noted there meanwhile.

    A lock that is neither ours nor the `expected` one is another's, who knows better, and is left as it is. Raises
    `SpeccError` if the lock cannot be written, or if it has another digest by now (exit code 4).
    """
    path, ours = compiled.lock_path, compiled.lock
    with _alone(path.absolute().parent):
        there = locks.read(path)
        if there is not None and _same(there, ours):
            _compare(compiled, there, found)
            ours = replace(ours, results={**ours.results, **there.results})
        elif there is not None and (expected is None or not _same(there, expected)):
            words(f"the lock {path.name} was changed meanwhile, and stays so: `specc build {compiled.path}` notes in it"
                  " what this build found")  # fmt: skip
            return
        try:
            locks.write(path, with_results(ours, compiled.plan().numerics, found) if found else ours)
        except OSError as error:
            raise storage_error(
                OSError(error.errno, error.strerror, path.name),
                path.absolute().parent,
                "build with `--locked`, which writes no lock",
            ) from error


def _same(one: Lock, two: Lock) -> bool:
    """Tell whether two locks pin the same, whatever builds found."""
    return replace(one, results={}).dump() == replace(two, results={}).dump()


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
    plan = compiled.plan()
    known = lock.results.get(plan.numerics, {})
    wrong = [name for name, digest in found.items() if known.get(name, digest) != digest]
    if wrong:
        first = wrong[0]
        raise SpeccError(
            f"the stage `{first}` came out as sha256:{found[first][:12]}…, and the lock has sha256:{known[first][:12]}…"
            f" for the class `{plan.numerics}`",
            where=compiled.lock_path.name,
            note="nothing that decides its bits has changed, so this is a difference to be explained",
            hint=f"`specc show {found[first][:12]}` shows the artifact; if the lock is wrong, `specc lock --upgrade"
            f" {compiled.path}` drops its results",
            code=Exit.DIFFERENCE,
        )


def _summary(
    compiled: Compiled, done: dict[str, Decision], verdicts: list[Verdict], stage: str | None, took: str | None
) -> None:
    """Say what came out: the checkpoint, what it `took` if it was built, what was measured, and how to serve it."""
    last = done[stage] if stage else done.get("checkpoint") or list(done.values())[-1]
    digest = last.digest or ""
    path = compiled.store.path(digest)
    words(f"{'built' if took else 'nothing to do'}: {last.stage.name} sha256:{digest}")
    click.echo(_short(path))
    if took:
        words(f"  {took}")
    if (evaluation := done.get("evaluation")) is not None and evaluation.digest:
        for line in _measured(compiled, evaluation.digest):
            words(f"  {line}")
    for verdict in verdicts:
        words(f"  {verdict.line()}")
    if last.stage.name == "checkpoint":
        words(f"  serve it: specc serve --dry-run {compiled.path}")
    if any(not verdict.met for verdict in verdicts):
        words("\nbuilt, checks failed")


def _measured(compiled: Compiled, digest: str) -> list[str]:
    found: dict[str, Any] = jsonlib.loads((compiled.store.path(digest) / "evaluation.json").read_text())
    served, untrained, simulated = found["served"], found["untrained"], found["simulated"]
    lines = [
        f"mean acceptance length {served['mean_acceptance_length']:.2f} in {found['runtime']}"
        f" ({found['prompts']} held-out prompts, {found['speculative_tokens']} speculative tokens,"
        f" {served['drafts']} drafts); untrained {untrained['mean_acceptance_length']:.2f}",
        f"simulated on the same rows {simulated['mean_acceptance_length']:.2f} ({simulated['drafts']} drafts)",
    ]
    for dtype, lossless in found["lossless"].items():
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
