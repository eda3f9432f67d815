"""`specc lock`: pin everything that a rebuild needs."""

from __future__ import annotations

from pathlib import Path

import click

from specc.core import lock as locks
from specc.core.cli.options import SPEC, as_json, print_json, words
from specc.core.compiler import compile_spec, describe, stale
from specc.core.errors import Exit, SpeccError


@click.command("lock", short_help="pin everything that a rebuild needs")
@SPEC
@click.option("--check", "check_only", is_flag=True, help="Fail when the lock is missing or stale; write nothing.")
@click.option("--upgrade", is_flag=True, help="Take nothing from the old lock: new verifier revision, new defaults.")
@click.option("--dry-run", is_flag=True, help="Say what would move; write nothing.")
@as_json
def command(spec: Path, check_only: bool, upgrade: bool, dry_run: bool, json: bool) -> int:
    """Write SPEC's lock beside it: every value, every file's sha256, every engine's version."""
    compiled = compile_spec(spec, fresh=upgrade)
    if check_only:
        if compiled.before is None:
            raise SpeccError(f"there is no lock `{compiled.lock_path.name}`", hint=f"`specc lock {spec}` writes it")
        if compiled.moved:
            raise stale(compiled, "`--check` was given")
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
