"""`specc compile`: what a locked spec needs to be built elsewhere, as files."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from specc.core import lock as locks
from specc.core.cli.options import ONLY, SPEC, as_json, print_json, words
from specc.core.compiler import Builds, Compiled, compile_spec, stale
from specc.core.errors import Exit, SpeccError
from specc.core.language.text import printable
from specc.core.targets import (
    FOLDER,
    MANIFEST,
    TARGETS,
    engine_files,
    jobs_of,
    project_of,
    read_settings,
    render,
    write_folder,
)


class _Compile(click.Command):
    """A command whose help lists the settings of every target, from their rows."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each target."""
        for target in TARGETS.values():
            with formatter.section(f"{target.name}: {target.about}; settings"):
                formatter.write_dl(
                    [
                        (row.name, row.about + (" (required)" if row.required else f" [default: {row.default}]"
                                                if row.default else ""))
                        for row in target.settings
                    ]
                )  # fmt: skip


@click.command("compile", cls=_Compile, short_help="what a locked spec needs to be built elsewhere, as files")
@SPEC
@click.option("--target", required=True, type=click.Choice(list(TARGETS)), help="Where it is to be built.")
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="Folder to write: a new one, an empty one, or that of an earlier compile.")  # fmt: skip
@click.option("--set", "given", multiple=True, metavar="NAME=VALUE", help="Set a value of the site; may be repeated.")
@ONLY
@click.option("--class", "machine", metavar="CLASS", help="Class of machine to compile for (default: the lock's).")
@click.option("--with-files", is_flag=True, help="Copy the files that the spec names too: data, a local verifier.")
@as_json
def command(  # noqa: PLR0917 - click passes by name
    spec: Path,
    target: str,
    out: Path,
    given: tuple[str, ...],
    only: tuple[str, ...],
    machine: str | None,
    with_files: bool,
    json: bool,
) -> int:
    """Write scripts or manifests that build SPEC's lock on other machines, with a copy of both.

    Nothing is started, and nothing is written unless all of it can be.
    """
    row = TARGETS[target]
    settings = read_settings(row, given)
    compiled = _current(spec, machine, only)
    _refuse_devices(compiled.values)
    values = compiled.lock.locked.values
    project = project_of(spec, compiled.build, values)
    jobs, here = jobs_of(compiled.plan), compiled.machine
    files = render(row, project, jobs, settings, machine=here.name) | engine_files(values, jobs, here.device)
    copies = {f"{FOLDER}/{path}": (project.places[path], digest) for path, digest in project.files.items()}
    head: dict[str, Any] = {
        "target": target,
        "class": compiled.machine.name,
        **({"build": project.build} if project.build else {}),
        "spec": {"file": project.spec, "sha256": project.digest(project.spec)},
        "lock": {"file": project.lock, "sha256": project.digest(project.lock)},
        "settings": settings,
    }
    written = write_folder(out, files, head, copies if with_files else {})
    if json:
        print_json({"out": str(out), **head, "files": [{"path": path, "sha256": sha} for path, sha in written.items()]})
        return Exit.OK
    words(f"wrote {len(written)} files for the target `{target}`; `{MANIFEST}` lists them")
    for path in project.files if not with_files else ():
        words(f"  put `{printable(path, 120)}` into {out / FOLDER}, or compile `--with-files`")
    words(f"  start it: bash {shlex.quote(str(out / row.start))}")
    click.echo(str(out / row.start))
    return Exit.OK


def _refuse_devices(values: Mapping[str, Any]) -> None:
    """Raise `SpeccError` if a spec names devices."""
    for section in ("datagen", "train"):
        if values["runtime"][section].get("devices"):
            raise SpeccError(
                f"`runtime.{section}.devices` are numbers on one machine, and a cluster gives each job its own devices",
                hint="put them into a profile of that machine: `specc build --profile FILE`",
            )


def _current(spec: Path, machine: str | None, only: Collection[str]) -> Compiled:
    """Return the build that is meant; raises `SpeccError` unless its lock is there and current."""
    path = locks.lock_path(spec)
    before = locks.read(path)
    if before is None and spec.is_file():
        raise SpeccError(f"there is no lock `{path.name}`, which is what other machines build",
                         hint=f"`specc lock {spec}` writes it")  # fmt: skip
    compiled = compile_spec(spec, machine=machine, only=only)
    own = {name: lock for name, lock in (before or {}).items() if name == compiled.build}
    builds = Builds(path=spec, every=(compiled,), before=own)
    if builds.moved:
        raise stale(builds, "other machines build the lock as it is")
    return compiled
