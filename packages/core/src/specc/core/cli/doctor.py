"""`specc doctor`: what this machine is and has, and what a spec needs beyond it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import click

from specc.core.algorithms import algorithm
from specc.core.cli.options import ONLY, PROFILE, as_json, human, paint, print_json, words
from specc.core.compiler import Compiled, compile_spec
from specc.core.datafiles import Format, files_of, local_format
from specc.core.errors import Exit
from specc.core.execute.machine import cpu_flags, detect_class, installed, isa_of, machine_name
from specc.core.lock import MachineClass, machine_class
from specc.core.plan.costs import alive
from specc.core.plan.stages import streams
from specc.core.store import Store

_COLOURS: Final = {"ok": "green", "note": "yellow", "lack": "red"}
BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Fact:
    """One line: a `lack` stops a build, a `note` may surprise."""

    state: Literal["ok", "note", "lack"]
    what: str
    text: str
    hint: str = ""


@click.command("doctor", short_help="what this machine has, and what a spec needs beyond it")
@click.argument("spec", required=False, type=click.Path(path_type=Path))
@PROFILE
@ONLY
@as_json
def command(spec: Path | None, profile: Path | None, only: tuple[str, ...], json: bool) -> int:
    """Show this machine's class, engines, threads, memory and disk, and with SPEC what it lacks for a build."""
    compiled = compile_spec(spec, machine=machine_name(), only=only, profile=profile) if spec else None
    store = compiled.store if compiled else Store.locate(Path.cwd() / "spec.yaml")
    facts = [*_machine(), *_engines(compiled.machine if compiled else machine_class(machine_name()), spec)]
    facts += _needs(compiled) if compiled else [_disk(store, None)]
    lacks = [fact for fact in facts if fact.state == "lack"]
    if json:
        print_json({"class": machine_name(), "store": str(store.root), "facts": [asdict(fact) for fact in facts]})
    else:
        width = max(len(fact.what) for fact in facts)
        for fact in facts:
            click.echo(f"{paint(f'{fact.state:<4}', _COLOURS[fact.state])}  {fact.what:<{width}}  {fact.text}")
            if fact.hint:
                click.echo(f"{'':<{width + 8}}{fact.hint}")
        subject = f"build {spec}" if spec else "build"
        words(f"this machine can {subject}" if not lacks else f"this machine cannot {subject}: {len(lacks)} lacking")
    return Exit.INPUT if lacks else Exit.OK


def _machine() -> Iterator[Fact]:
    device, isa = detect_class()
    yield Fact("ok", "python", f"{platform.python_version()}, {sys.executable}")
    own = (machine_class(machine_name()).device, machine_class(machine_name()).isa) == (device, isa)
    richest = "" if device == "cpu" else f"; the processor has {isa_of(cpu_flags())}"
    if own:
        yield Fact("ok", "class", f"{machine_name()}{richest}")
    else:
        yield Fact("lack", "class", f"none for {device} with {isa}: specc can lock and plan here, and not build",
                   "a build needs x86-64 with AVX2, or a GPU")  # fmt: skip
    yield Fact("ok", "cores", str(_cores()))
    total, free = _memory()
    yield Fact("ok", "memory", f"{human(total)}, {human(free)} free")


def _engines(machine: MachineClass, spec: Path | None) -> Iterator[Fact]:
    """Yield whether a class's engines are here, as the spec's lock pins them or this release does."""
    here = installed(machine.engines)
    release = machine_class(machine.name).engines
    for name, pin in machine.engines.items():
        if here[name] == pin:
            yield Fact("ok", name, pin)
        else:
            yield Fact("lack", name, f"{here[name] or 'none'} is installed, and the pinned version is {pin}",
                       f"`pip install 'specc[{machine.device}]'` brings the pinned engines" if release.get(name) == pin
                       else f"`specc lock --upgrade engines {spec}` takes this release's engines")  # fmt: skip


def _needs(compiled: Compiled) -> Iterator[Fact]:
    """Yield what a spec asks of the machine."""
    values = compiled.values
    threads, ranks = values["runtime"]["threads"], values["runtime"]["train"]["ranks"]
    ranks = ranks if isinstance(ranks, int) else max(phase["ranks"] for phase in ranks)
    if threads * ranks > _cores():
        each = f" in each of {ranks} ranks" if ranks > 1 else ""
        yield Fact("note", "threads", f"{threads}{each}, on {_cores()} cores",
                   "it works and is slow; `runtime.threads` is part of what decides the bits")  # fmt: skip
    else:
        yield Fact("ok", "threads", str(threads * ranks))
    yield _disk(compiled.store, _states(values, compiled.resolved.files))


def _states(values: Mapping[str, Any], files: Mapping[str, Path]) -> int | None:
    """Return the most bytes that the hidden states of a spec's data can take, None if its rows cannot be counted."""
    data, config = values["data"], values["verifier"]["config"]
    rows = 0
    for source in [*data["sources"], *data["validation"]["sources"]]:
        counts = [_lines(files.get(name)) if "file" in source else None for name in files_of(source)]
        known = sum(count for count in counts if count is not None)
        limit = source.get("rows")
        if None in counts and limit is None:
            return None
        rows += min(known, limit or known) if None not in counts else limit
    layers = algorithm(values["draft"]["algorithm"]).layers(values["draft"])
    width = (len(layers) + 1) * config["hidden_size"] * BYTES[values["verifier"]["dtype"]]
    share = alive(data, rows, data["validation"]["share"]) if streams(values) else 1.0
    return round(rows * data["sequence_length"] * width * share)


def _lines(path: Path | None) -> int | None:
    """Return the rows of a file that has one a line, None of any other."""
    if path is None or local_format(path.name) not in (Format("jsonl"), Format("txt")):
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _disk(store: Store, needed: int | None) -> Fact:
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{human(free)} free for {store.root}"
    if needed is None:
        return Fact("ok", "disk", text)
    text += f"; the hidden states take at most {human(needed)}"
    if needed <= free:
        return Fact("ok", "disk", text)
    return Fact(
        "note",
        "disk",
        text,
        "rows shorter than `data.sequence_length` take less; `specc gc` frees space, and"
        " `data: {hidden_states: stream}` needs less of it",
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory() -> tuple[int, int]:
    """Return this machine's memory and what of it is free, in bytes (proc(5), in kB there)."""
    found = {"MemTotal": 0, "MemAvailable": 0}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found["MemTotal"], found["MemAvailable"]
