"""`specc gc`: remove what nothing needs, and say first how much that is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from specc.core import lock as locks
from specc.core.cli.options import as_json, human, print_json, words
from specc.core.errors import Exit, SpeccError
from specc.core.store import Store, garbage, project_root, sweep

ELSEWHERE: Final = ("node_modules", "site-packages")
"""Folders of other people's projects."""


@click.command("gc", short_help="remove what no lock, ref or recent build needs")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option("--keep-last", type=click.IntRange(min=0), default=1, show_default=True, metavar="N",
              help="Keep the N newest artifacts of each stage of a spec, too.")  # fmt: skip
@click.option("--unfinished", is_flag=True, help="Remove what killed builds would go on from, too.")
@click.option("--forget", multiple=True, metavar="NAME",
              help="Take its name from an artifact first (`specc status` lists them); may be repeated.")  # fmt: skip
@as_json
def command(dry_run: bool, keep_last: int, unfinished: bool, forget: tuple[str, ...], json: bool) -> int:
    """Remove artifacts that no lock of this project, no ref, no recent and no running build needs.

    A ref is a name that the last build of a spec, or a conversion, gives to what came out.
    """
    if dry_run and forget:
        raise SpeccError("`--forget` removes a name, and `--dry-run` removes nothing",
                         hint="leave one of them out", code=Exit.USAGE)  # fmt: skip
    here = Path.cwd() / "spec.yaml"
    store = Store.locate(here)
    if not store.root.is_dir():
        raise SpeccError("there is no store here", where=str(store.root),
                         hint="`SPECC_STORE` names one elsewhere")  # fmt: skip
    with store.lock("gc", lambda: words("another gc or a build's next stage holds the store: waiting")):
        for name in forget:
            store.forget_ref(name)
        roots = set(_locked(project_root(here)))  # now: what a build that ended meanwhile no longer holds, its lock has
        found = garbage(store, roots, keep_last=keep_last, unfinished=unfinished)
        if not dry_run:
            sweep(store, found)
    if json:
        artifacts = [
            {"stage": item.stage, "digest": f"sha256:{item.digest}", "bytes": found.sizes[item.digest]}
            for item in found.artifacts
        ]
        folders = [str(path) for path in found.folders]
        print_json({"bytes": found.size, "removed": not dry_run, "artifacts": artifacts, "folders": folders})
        return Exit.OK
    count = len(found.artifacts)
    words(f"{human(found.size)} {'would come' if dry_run else 'came'} free:"
          f" {count} artifact{'s' * (count != 1)}, {len(found.folders)} left-over folders")  # fmt: skip
    for item in sorted(found.artifacts, key=lambda item: -found.sizes[item.digest]):
        click.echo(f"{human(found.sizes[item.digest]):>9}  {item.stage:<14} sha256:{item.digest[:12]}…")
    for path in found.folders:
        click.echo(f"{human(found.sizes[str(path)]):>9}  {path.parent.name}/{path.name}")
    return Exit.OK


def _locked(project: Path) -> Iterator[str]:
    """Yield every digest that a lock of the project has as a result; raises `SpeccError` for a lock that is broken."""
    for path in _lock_files(project):
        builds = locks.read(path)
        if builds is None:
            raise SpeccError("the lock has conflict markers, so what it needs is not known", where=str(path),
                             hint="resolve them, or `specc lock` its spec, first")  # fmt: skip
        for lock in builds.values():
            for found in lock.results.values():
                yield from found.values()


def _lock_files(project: Path) -> Iterator[Path]:
    """Yield the project's lock files; a store that builds work in is not looked into."""
    for parent, folders, names in os.walk(project):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in ELSEWHERE)
        yield from (Path(parent) / name for name in sorted(names) if name.endswith(".lock.json"))
