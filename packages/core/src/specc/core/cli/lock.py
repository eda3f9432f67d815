"""`specc lock`: pin everything that a rebuild needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from specc.core import lock as locks
from specc.core.cli.options import as_json, print_json, words
from specc.core.cli.target import is_spec
from specc.core.compiler import PARTS, Part, compile_builds, describe, stale
from specc.core.errors import Exit, SpeccError, SpeccErrors
from specc.core.language import check

ALL: Final = "all"


class _Lock(click.Command):
    """A command whose `--upgrade` may stand without a part, also before the spec."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, after `--upgrade` without a part has become `--upgrade=all`."""
        pairs = zip(args, [*args[1:], ""], strict=True)
        return super().parse_args(ctx, [_whole(arg) if _no_part(following) else arg for arg, following in pairs])


def _whole(arg: str) -> str:
    return f"{arg}={ALL}" if arg == "--upgrade" else arg


def _no_part(arg: str) -> bool:
    """Tell whether what follows `--upgrade` is an option, the spec or nothing."""
    return arg not in PARTS and (not arg or arg.startswith("-") or is_spec(arg))


@click.command("lock", cls=_Lock, short_help="pin everything that a rebuild needs")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", type=click.Path(path_type=Path))
@click.option(
    "--check",
    "check_only",
    is_flag=True,
    help="Fail when a lock is missing or stale; write nothing. Takes several specs.",
)
@click.option(
    "--upgrade",
    "asked",
    multiple=True,
    metavar=f"[{'|'.join(PARTS)}]",
    type=click.Choice([*PARTS, ALL]),
    help="Take a part of the lock anew: a hub's commit, the data's files, the engines' versions, or the defaults and"
    " the date. The rest stays. May be repeated; without a part it is all of them, and the results go too.",
)
@click.option("--dry-run", is_flag=True, help="Say what would move; write nothing.")
@as_json
def command(specs: tuple[Path, ...], check_only: bool, asked: tuple[str, ...], dry_run: bool, json: bool) -> int:
    """Write SPEC's lock beside it: every value, every file's sha256, every engine's version."""
    upgrade: list[Part] = [part for part in PARTS if part in asked or ALL in asked]
    if check_only:
        return _check(specs, upgrade, json)
    spec, *others = specs
    if others:
        raise SpeccError(f"`specc lock` writes one lock, and {len(specs)} specs were given",
                         hint="lock them one by one; `specc lock --check SPEC...` takes several",
                         code=Exit.USAGE)  # fmt: skip
    builds = compile_builds(spec, upgrade=upgrade)
    written = not dry_run and locks.write(builds.lock_path, builds.locks)
    if json:
        moved = [{"path": item.path, "lock": item.lock, "spec": item.spec} for item, _ in builds.moved]
        print_json({"lock": str(builds.lock_path), "written": written, "moved": moved})
        return Exit.OK
    for item, compiled in builds.moved:
        words(f"  {describe(compiled, item)}")
    if dry_run:
        words("nothing was written (`--dry-run`)")
    else:
        words(f"locked {builds.lock_path}" if written else _current(builds.lock_path))
    return Exit.OK


def _check(specs: tuple[Path, ...], upgrade: list[Part], json: bool) -> int:
    """Say which locks are current; raises `SpeccErrors` with every one that is missing or stale."""
    good: list[Path] = []
    errors: list[SpeccError] = []
    for spec in specs:
        try:
            good.append(_checked(spec, upgrade))
        except SpeccError as error:
            errors += error.errors
    for path in good:
        words(_current(path))
    if errors:
        raise SpeccErrors(errors)
    if json:
        print_json({"locks": [str(path) for path in good]})
    return Exit.OK


def _checked(spec: Path, upgrade: list[Part]) -> Path:
    """Return where a spec's lock is; raises `SpeccError` unless it is there and current."""
    if not (place := locks.lock_path(spec)).exists():
        check(spec)  # what is wrong with the spec comes first; a hub is not asked for a lock that is not there
        raise SpeccError(f"there is no lock `{place.name}`", hint=f"`specc lock {spec}` writes it")
    builds = compile_builds(spec, upgrade=upgrade)
    if builds.moved:
        raise stale(builds, "`--check` was given", upgrade)
    return builds.lock_path


def _current(path: Path) -> str:
    return f"{path} is up to date"
