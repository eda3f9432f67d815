"""`specc evaluate`: a spec's benchmark, that of a checkpoint in the store, that of a server elsewhere, or a load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import click

from specc.core.cli.load import load as load_servers
from specc.core.cli.measured import tables
from specc.core.cli.options import ONLY, PROFILE, as_json, print_json, words
from specc.core.cli.serve import ENVIRONMENT
from specc.core.cli.target import is_spec
from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, sha256_file, write_atomic
from specc.core.measure.load import MAX_TOKENS, PROFILES, STREAMS
from specc.core.serving.server import START
from specc.core.store.manifests import SHORT

REPEATS: Final = 3
THREADS: Final = 4
TIMEOUT: Final = 300.0
SECONDS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options ask to be measured; empty or None where they leave it to us."""

    prompts: tuple[Path, ...]
    temperature: tuple[float, ...]
    tokens: tuple[int, ...]
    batch_size: tuple[int, ...]
    max_tokens: int | None
    repeats: int | None
    threads: int | None

    @property
    def given(self) -> list[str]:
        """The options that were given, as a user writes them."""
        return [f"--{field.name.replace('_', '-')}" for field in fields(self) if getattr(self, field.name)]

    @property
    def temperatures(self) -> list[float]:
        """The temperatures, 0 by default."""
        return list(self.temperature) or [0.0]

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes, 1 and 16 by default."""
        return list(self.batch_size) or [1, 16]


@click.command("evaluate", short_help="acceptance and speed over temperatures, tokens and batch sizes")
@click.argument("target", metavar="[ID|SPEC]", required=False)
@click.option("--prompts", multiple=True, type=click.Path(path_type=Path), help="A file of prompts; may be repeated.")
@click.option("--temperature", multiple=True, type=click.FloatRange(0, 2), help="Repeatable.  [default: 0]")
@click.option("--tokens", multiple=True, type=click.IntRange(1), help="Speculative tokens; repeatable.")
@click.option(
    "--batch-size",
    multiple=True,
    type=click.IntRange(1, 1024),
    help="Repeatable.  [default: 1 and 16; of a load 1, 4 and 16]",
)
@click.option("--max-tokens", type=click.IntRange(1), help=f"Of an answer.  [default: {MAX_TOKENS}]")
@click.option("--repeats", type=click.IntRange(2, 100), help=f"Timed pairs of runs.  [default: {REPEATS}]")
@click.option("--threads", type=click.IntRange(1, 1024), help=f"Of each engine, of an ID.  [default: {THREADS}]")
@click.option("--url", help="A server that speculates, up to and with `/v1`, in place of ID or SPEC.")
@click.option("--plain-url", help="A server of the verifier alone, to compare with.")
@click.option("--load", type=click.Choice(PROFILES), help="Drive servers of ours with GuideLLM in this manner.")
@click.option("--seconds", type=click.IntRange(1), help=f"Of each step of a load.  [default: {SECONDS}]")
@ENVIRONMENT
@click.option("--to", type=click.Path(path_type=Path), help="The file for what a server did, or a load's directory.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.001),
    help=f"Seconds of a server's answer, or of a load's servers to start.  [default: {TIMEOUT:g}]",
)
@click.option("--locked", is_flag=True, help="Of a SPEC: fail when its lock is stale; write no lock.")
@PROFILE
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    target: str | None,
    prompts: tuple[Path, ...],
    temperature: tuple[float, ...],
    tokens: tuple[int, ...],
    batch_size: tuple[int, ...],
    max_tokens: int | None,
    repeats: int | None,
    threads: int | None,
    url: str | None,
    plain_url: str | None,
    load: str | None,
    seconds: int | None,
    variables: dict[str, str],
    to: Path | None,
    timeout: float | None,
    locked: bool,
    profile: Path | None,
    only: tuple[str, ...],
    json: bool,
) -> int:
    """Measure how many tokens are accepted and what that gains, in every combination of what is asked for.

    Of a SPEC, what its `evaluate.grid` says; of the ID of a checkpoint, and of a server at `--url`, what the options
    say. The results of the first two are artifacts; that of a server is a file. With `--load` GuideLLM drives servers
    of ours, with the speculator and without it, and its reports are kept in a directory.
    """
    asked = Asked(prompts=prompts, temperature=temperature, tokens=tokens, batch_size=batch_size,
                  max_tokens=max_tokens, repeats=repeats, threads=threads)  # fmt: skip
    server = {"--plain-url": plain_url, "--to": to, "--timeout": timeout}
    of_spec = {"--locked": locked, "--profile": profile, "--only": only}
    of_load = {"--seconds": seconds, "--env": variables}
    if (target is None) == (url is None):
        raise SpeccError("one thing is measured: an ID, a SPEC or the server at `--url`", code=Exit.USAGE,
                         hint="`specc evaluate SPEC`, or `specc evaluate --url http://127.0.0.1:8000/v1 --prompts FILE"
                         " --to FILE`")  # fmt: skip
    if load is not None:
        if target is None:
            raise SpeccError("a load is for servers of ours: of an ID or a SPEC", hint="name one in place of `--url`",
                             code=Exit.USAGE)  # fmt: skip
        unfit = [name for name in asked.given if name not in ("--prompts", "--max-tokens", "--batch-size")]
        _refuse("a load", [*_given({"--plain-url": plain_url, "--locked": locked, "--profile": profile}), *unfit])
        return load_servers(target, profile=load, to=to, seconds=seconds or SECONDS, streams=batch_size or STREAMS,
                            variables=variables, timeout=timeout or START, prompts=prompts, max_tokens=max_tokens,
                            only=only, json=json)  # fmt: skip
    _refuse("a measurement without `--load`", _given(of_load))
    if url is not None:
        _refuse("a server", [*_given(of_spec), *(name for name in asked.given if name in ("--tokens", "--threads"))])
        return _of_server(url, plain_url, asked, to, timeout or TIMEOUT, json=json)
    if target is not None and is_spec(target):
        _refuse("a spec, which says itself what is measured", [*_given(server), *asked.given])
        return _of_spec(Path(target), locked=locked, profile=profile, only=only, json=json)
    _refuse("a checkpoint", [*_given(server), *_given(of_spec)])
    return _of_checkpoint(str(target), asked, json=json)


def _given(options: Mapping[str, object]) -> list[str]:
    return [name for name, value in options.items() if value]


def _refuse(what: str, options: Sequence[str]) -> None:
    if options:
        hint = "write it in `evaluate.grid`" if "spec" in what else "leave it out"
        raise SpeccError(f"`{options[0]}` is not for {what}", hint=hint, code=Exit.USAGE)


def _of_spec(path: Path, *, locked: bool, profile: Path | None, only: Sequence[str], json: bool) -> int:
    """Build a spec with its evaluation and its benchmark, and print what they measured."""
    from specc.core.cli.build import benchmarked, making, measured  # which compiles specs
    from specc.core.language import check
    from specc.core.plan import read_json

    if not any(checked.spec.evaluate for checked in check(path)):
        raise SpeccError("the spec has no `evaluate`, and nothing would be measured", where=str(path),
                         hint="add `evaluate: {prompts: [{file: prompts/held-out.jsonl}], grid: {}}`")  # fmt: skip
    with making(path, trust="locked" if locked else "update", profile=profile, only=only) as built:
        data: dict[str, Any] = {}
        for one in built.made:
            store, name = one.compiled.store, one.compiled.build
            if name:
                words(name)
            found = {stage: read_json(store, digest, f"{stage}.json") for stage, digest in one.found.items()
                     if stage in ("evaluation", "benchmark")}  # fmt: skip
            key = one.done["benchmark"].key if "benchmark" in found else None
            data[name] = {**found, "speeds": store.record(key).get("benchmark") if key else None}
            if not json:
                for line in [*measured(one), *benchmarked(one)]:
                    click.echo(line.rstrip())
            for stage in found:
                words(f"{stage} sha256:{one.found[stage]}")
        for verdict in (verdict for some in built.verdicts for verdict in some):
            words(verdict.line())
        if json:
            print_json(data[""] if list(data) == [""] else {"builds": data})
    return built.end()


def _of_checkpoint(target: str, asked: Asked, *, json: bool) -> int:
    """Measure a checkpoint as the stage `benchmark` does, into the store."""
    from specc.core import lock as locks
    from specc.core.cli.serve import find
    from specc.core.execute import Reporter, build_alone, machine_name, terminable
    from specc.core.plan import ROWS, PlannedStage, read_json
    from specc.core.store import Store

    served = find(target)
    checkpoint = served.checkpoint
    store = Store.locate(Path.cwd() / "spec.yaml")
    files = {_name(path): path for path in _prompts(asked)}
    sources = [{"file": name, "rows": None, "sha256": sha256_file(path)} for name, path in files.items()]
    if len(files) < len(asked.prompts):
        raise SpeccError("two files of prompts have one name", hint="copy one of them into the working directory",
                         code=Exit.USAGE)  # fmt: skip
    grid = {
        "temperatures": asked.temperatures,
        "speculative_tokens": _tokens(checkpoint.stage, served.values, asked),
        "batch_sizes": asked.batch_sizes,
        "repeats": asked.repeats or REPEATS,
    }
    evaluate = {"prompts": sources, "max_tokens": asked.max_tokens or MAX_TOKENS, "grid": grid}
    # A checkpoint says nothing of the machine it was made on.
    row = ROWS["benchmark"]({**served.values, "evaluate": evaluate, "runtime": {}})
    if row is None:  # there is a grid
        raise AssertionError(checkpoint.digest)
    row = replace(row, inputs={**row.inputs, "checkpoint": checkpoint.stage})
    every = locks.machine_class(machine_name(), locks.engines()).facets(asked.threads or THREADS, 1, served.processes)
    stage = PlannedStage(row=row, facets={name: every[name] for name in row.facets if name in every}, recipe="")
    folders = {checkpoint.stage: checkpoint.digest, "verifier": checkpoint.inputs["verifier"]}
    if "stitched" in row.inputs:
        stitched = store.last(served.name, "stitched")  # `find` has seen to it
        folders["stitched"] = stitched.digest if stitched else ""
    with terminable(), store.lease() as hold:
        made = build_alone(stage, folders, store, name=served.name, files=files, reporter=Reporter(), hold=hold)
        found, speeds = read_json(store, made.digest, "benchmark.json"), store.record(made.key).get("benchmark")
        if json:
            print_json({"benchmark": found, "speeds": speeds, "digest": f"sha256:{made.digest}"})
        else:
            _echo(tables(found, speeds))
        words(f"benchmark sha256:{made.digest}")
        words(f"  show it again: specc show {made.digest[:SHORT]}")
    return Exit.OK


def _of_server(url: str, plain_url: str | None, asked: Asked, to: Path | None, timeout: float, *, json: bool) -> int:
    """Measure a server, and write what it did into a file."""
    from specc.core.measure.endpoint import drive
    from specc.core.measure.prompts import read_source

    if to is None:
        raise SpeccError("what a server does is no artifact, and needs a file", hint="add `--to server.json`",
                         code=Exit.USAGE)  # fmt: skip
    prompts = [prompt for path in _prompts(asked) for prompt in read_source(path, _name(path), {}, None)]
    if not prompts:
        raise SpeccError("the files hold no prompt", where=str(asked.prompts[0]), hint='a row is `{"prompt": "…"}`')
    found = drive(
        url,
        prompts,
        plain_url=plain_url,
        temperatures=asked.temperatures,
        batch_sizes=asked.batch_sizes,
        max_tokens=asked.max_tokens or MAX_TOKENS,
        repeats=asked.repeats or REPEATS,
        timeout=timeout,
        say=words,
    )
    write_atomic(to, pretty(found))
    if json:
        print_json(found)
    else:
        _echo(tables(found, found["speeds"]))
        if any(cell["interval"] is None for cell in found["cells"]):
            words("note: without `--per-request-spec-decode-metrics summary` the server says nothing of single answers,"
                  " and there are no intervals and no subsets")  # fmt: skip
    words(f"written to {to}; it is of a machine elsewhere, and no artifact")
    return Exit.OK


def _echo(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line.rstrip())


def _prompts(asked: Asked) -> tuple[Path, ...]:
    """Return the files of prompts; raises `SpeccError` if there is none, or one of them is not there."""
    if not asked.prompts:
        raise SpeccError("there are no prompts to ask", hint="add `--prompts prompts/held-out.jsonl`", code=Exit.USAGE)
    for path in asked.prompts:
        if not path.is_file():
            raise SpeccError(f"there is no file `{path}`", hint="give a file of JSON Lines")
    return asked.prompts


def _name(path: Path) -> str:
    """Return what a file is called in an artifact: as it was given, below the working directory; else its own name."""
    outside = path.is_absolute() or ".." in path.parts
    return path.name if outside else path.as_posix()


def _tokens(stage: str, values: Mapping[str, Any], asked: Asked) -> list[int]:
    """Return the numbers of tokens to draft, by default the checkpoint's own; what a source bore nobody knows."""
    from specc.core.algorithms import ALGORITHMS, algorithm

    draft = values["draft"]
    if draft["algorithm"] not in ALGORITHMS:
        raise SpeccError(f"a draft for vLLM's own method `{draft['algorithm']}` is measured at a server",
                         hint="`specc serve ID`, and `specc evaluate --url http://127.0.0.1:8000/v1 …`",
                         code=Exit.USAGE)  # fmt: skip
    if stage == "checkpoint" and asked.tokens:
        most = algorithm(draft["algorithm"]).max_speculative_tokens(draft)
        if max(asked.tokens) > most:
            raise SpeccError(
                f"this draft can be asked for at most {most} tokens, and `--tokens` is {max(asked.tokens)}",
                hint=f"use {most} or fewer",
                code=Exit.USAGE,
            )
    return list(dict.fromkeys(asked.tokens)) or [values["export"]["speculative_tokens"]]
