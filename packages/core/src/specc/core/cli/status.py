"""`specc status`: which artifacts exist, and which are stale."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from specc.core.cli.compare import print_compared
from specc.core.cli.decisions import as_data, decided, reason, steps
from specc.core.cli.options import ONLY, PROFILE, as_json, columns, human, paint, print_json, words
from specc.core.compiler import compile_builds
from specc.core.errors import Exit, SpeccError
from specc.core.store import Store
from specc.core.store.manifests import SHORT

_STATES = {
    "hit": ("current", "green"),
    "build": ("stale", "yellow"),
    "build?": ("stale?", "cyan"),
    "stream": ("stream", "blue"),
}


@click.command("status", short_help="which artifacts exist, which are stale")
@click.argument("spec", type=click.Path(path_type=Path), required=False)
@PROFILE
@ONLY
@as_json
def command(spec: Path | None, profile: Path | None, only: tuple[str, ...], json: bool) -> int:
    """Show SPEC's artifacts: current, stale (and why), or missing; of a matrix, its builds by their acceptance.

    Without SPEC, show the artifacts of the store that have a name: what specs built last, and conversions.
    """
    if spec is None:
        if profile or only:
            raise SpeccError(f"`{'--profile' if profile else '--only'}` is for a spec, and none is given",
                             hint="`specc status SPEC`", code=Exit.USAGE)  # fmt: skip
        return _named(Store.locate(Path.cwd() / "spec.yaml"), json=json)
    chosen = compile_builds(spec, profile=profile).chosen(only)
    if len(chosen) > 1:
        return print_compared(chosen, json=json)
    compiled = chosen[0]
    if json:
        print_json({"name": compiled.name, "class": compiled.plan.numerics, "stages": as_data(steps(chosen))})
        return Exit.OK
    decisions = decided(chosen)[0]
    width = max(len(decision.stage.name) for decision in decisions)
    click.echo(f"{'stage':<{width}}  state    artifact      size     why")
    for decision in decisions:
        word, name = ("missing", "red") if decision.last is None and decision.due else _STATES[decision.action]
        digest = decision.digest or (decision.last.digest if decision.last else None)
        size = human(compiled.store.manifest(digest).size) if decision.action == "hit" and digest else ""
        why = "" if decision.action == "hit" else reason(compiled, decision)
        artifact = digest[:12] if digest else ""
        click.echo(
            f"{decision.stage.name:<{width}}  {paint(f'{word:<7}', name)}  {artifact:<12}  {size:<7}  {why}".rstrip()
        )
    return Exit.OK


def _named(store: Store, *, json: bool) -> int:
    """List what the store's refs name; a stage of None is an artifact that is gone."""
    found: list[dict[str, Any]] = []
    for name, digest in store.refs().items():
        item: dict[str, Any] = {"name": name, "stage": None, "digest": f"sha256:{digest}", "bytes": None}
        with suppress(SpeccError):
            store.path(digest)
            manifest = store.manifest(digest)
            item |= {"stage": manifest.stage, "bytes": manifest.size}
        found.append(item)
    if json:
        print_json({"named": found})
        return Exit.OK
    if not found:
        words(f"nothing in {store.root} has a name; `specc status SPEC` shows a spec's artifacts")
        return Exit.OK
    rows = [(item["name"], item["stage"] or "missing", item["digest"].removeprefix("sha256:")[:SHORT],
             "" if item["bytes"] is None else human(item["bytes"])) for item in found]  # fmt: skip
    for line in columns([("name", "stage", "artifact", "size"), *rows]):
        click.echo(line)
    return Exit.OK
