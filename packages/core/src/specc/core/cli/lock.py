"""`specc lock`: pin everything that a rebuild needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from specc.core import lock as locks
from specc.core.cli.options import SPEC, as_json, print_json, words
from specc.core.compiler import PARTS, Part, compile_spec, describe, stale
from specc.core.errors import Exit, SpeccError

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
    spec = arg.endswith((".yaml", ".yml")) or Path(arg).is_file()
    return arg not in PARTS and (not arg or arg.startswith("-") or spec)


@click.command("lock", cls=_Lock, short_help="pin everything that a rebuild needs")
@SPEC
@click.option("--check", "check_only", is_flag=True, help="Fail when the lock is missing or stale; write nothing.")
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
def command(spec: Path, check_only: bool, asked: tuple[str, ...], dry_run: bool, json: bool) -> int:
    """Write SPEC's lock beside it: every value, every file's sha256, every engine's version."""
    upgrade: list[Part] = [part for part in PARTS if part in asked or ALL in asked]
    compiled = compile_spec(spec, upgrade=upgrade)
    if check_only:
        if compiled.before is None:
            raise SpeccError(f"there is no lock `{compiled.lock_path.name}`", hint=f"`specc lock {spec}` writes it")
        if compiled.moved:
            raise stale(compiled, "`--check` was given", upgrade)
    writes = not (check_only or dry_run)
    written = writes and locks.write(compiled.lock_path, compiled.lock)
    if json:
        moved = [{"path": item.path, "lock": item.lock, "spec": item.spec} for item in compiled.moved]
        print_json({"lock": str(compiled.lock_path), "written": written, "moved": moved})
        return Exit.OK
    for item in compiled.moved:
        words(f"  {describe(compiled, item)}")
    if dry_run:
        words("nothing was written (`--dry-run`)")
    elif written:
        words(f"locked {compiled.lock_path}")
    else:
        words(f"{compiled.lock_path} is up to date")
    return Exit.OK
