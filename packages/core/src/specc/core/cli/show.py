"""`specc show`: an artifact, where it is from, what it measured, how to serve it."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final

import click

from specc.core.cli.options import as_json, columns, human, minutes, print_json
from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.files import flatten
from specc.core.store import Store

MEASURED: Final = {"draft": "metrics.json", "evaluation": "evaluation.json"}
"""The file of a stage's artifact that holds what it measured."""


@click.command("show", short_help="an artifact: where it is from, what it measured")
@click.argument("target", metavar="ID|SPEC")
@as_json
def command(target: str, json: bool) -> int:
    """Show an artifact by (the start of) its ID, or what the last build of SPEC made."""
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        return _show_spec(Path(target), json=json)
    store = Store.locate(Path.cwd() / "spec.yaml")
    digest = store.resolve(target)
    manifest = store.manifest(digest)
    if json:
        print_json(_as_data(store, manifest))
    else:
        _print(store, manifest, serve=digest[:12])
    return Exit.OK


def _show_spec(path: Path, *, json: bool) -> int:
    """Show the last checkpoint and evaluation of a spec, or else the last stage that a build of it reached."""
    from specc.core.language import check  # an id is shown without the language
    from specc.core.plan import ROWS

    values = check(path).spec.values()
    name, store = str(values["name"]), Store.locate(path, values["runtime"].get("store"))
    known = {stage: manifest for stage in ROWS if (manifest := store.last(name, stage)) is not None}
    shown = {stage: known[stage] for stage in ("checkpoint", "evaluation") if stage in known} or dict(
        list(known.items())[-1:]
    )
    if not shown:
        raise SpeccError(
            f"`{name}` was never built here", where=str(store.root), hint=f"`specc build {path}` builds it"
        )
    if json:
        print_json({"name": name, "artifacts": {stage: _as_data(store, item) for stage, item in shown.items()}})
        return Exit.OK
    for index, manifest in enumerate(shown.values()):
        if index:
            click.echo()
        _print(store, manifest, serve=str(path), keys=[item.key for item in known.values()])
    return Exit.OK


def _as_data(store: Store, manifest: Manifest) -> dict[str, Any]:
    here = manifest.digest in store.digests()
    return {
        "stage": manifest.stage,
        "digest": f"sha256:{manifest.digest}",
        "tensors": manifest.tensors and f"sha256:{manifest.tensors}",
        "folder": str(store.path(manifest.digest)) if here else None,
        "size": manifest.size,
        "files": [{"path": path, "size": size, "sha256": digest} for path, size, digest in manifest.files],
        "version": manifest.version,
        "key": manifest.key,
        "params": dict(manifest.params),
        "facets": dict(manifest.facets),
        "inputs": dict(manifest.inputs),
        "record": store.record(manifest.key),
        "measured": _measured(store, manifest) if here else None,
    }


def _print(store: Store, manifest: Manifest, *, serve: str, keys: Iterable[str] = ()) -> None:
    """Print an artifact's page; `keys` are those of the build at hand, as far as they are known."""
    keys = {*keys, *(item["key"] for item in manifest.params.get("stages", {}).values())}
    here, record = manifest.digest in store.digests(), store.record(manifest.key)
    click.echo(f"{manifest.stage} sha256:{manifest.digest}")
    made = ", ".join(
        [
            *([str(record["started"])] if "started" in record else []),
            *([f"in {minutes(float(record['seconds']))}"] if "seconds" in record else []),
        ]
    )
    count = f"{len(manifest.files)} file{'s' * (len(manifest.files) != 1)}"
    head = {
        "folder": str(store.path(manifest.digest)) if here else "no longer in the store",
        "size": f"{human(manifest.size)} in {count}",
        "key": manifest.key,
        "made": made or "no record of its run here",
        "numerics": " ".join(f"{name}={value}" for name, value in manifest.facets.items()) or "the same on any machine",
    }
    _aligned(head)
    _section("parameters")
    _aligned(flatten({name: value for name, value in manifest.params.items() if name != "stages"}))
    if manifest.inputs:
        _section("made of")
        for line in _tree(store, manifest, keys, set()):
            click.echo(f"  {line}")
    measured = _measured(store, manifest) if here else None
    if measured is not None:
        _section("measured")
        for line in _epochs(measured) if manifest.stage == "draft" else _acceptance(measured):
            click.echo(f"  {line}")
    if manifest.stage == "checkpoint":
        _section("serve it")
        click.echo(f"  specc serve {serve}")


def _measured(store: Store, manifest: Manifest) -> dict[str, Any] | None:
    """Return what a draft's training or an evaluation measured."""
    if manifest.stage not in MEASURED:
        return None
    path = store.path(manifest.digest) / MEASURED[manifest.stage]
    try:
        return dict(jsonlib.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise SpeccError(
            "the measurements cannot be read",
            where=str(path),
            hint=f"`specc verify {manifest.digest[:12]}` hashes the artifact again",
            code=Exit.DIFFERENCE,
        ) from error


def _tree(store: Store, manifest: Manifest, keys: Set[str], seen: set[str]) -> Iterator[str]:
    """Yield the lines of an artifact's ancestors; one that was shown before is not unfolded again.

    Equal bytes can come from different inputs. Which of them is meant here is known from `keys`; without
    them an ancestor is shown as it first came about.
    """
    inputs = list(manifest.inputs.items())
    for index, (slot, digest) in enumerate(inputs):
        last = index == len(inputs) - 1
        try:
            parent = next((found for key in keys if (found := store.manifest(digest, key)).key == key), None)
            parent = parent or store.manifest(digest)
        except SpeccError:
            yield f"{'└─' if last else '├─'} {slot} {digest[:12]} (no longer in the store)"
            continue
        name = slot if slot == parent.stage else f"{slot} ({parent.stage})"
        again = digest in seen and bool(parent.inputs)
        yield f"{'└─' if last else '├─'} {name} {digest[:12]}  {human(parent.size)}" + (", see above" if again else "")
        if digest not in seen:
            seen.add(digest)
            for line in _tree(store, parent, keys, seen):
                yield f"{'   ' if last else '│  '}{line}"


def _epochs(metrics: Mapping[str, Any]) -> list[str]:
    """Return the epochs of a training as a table; the one that was kept has a star."""
    best = metrics.get("best_epoch")
    rows = [["epoch", "loss", "validation", "acceptance length (simulated)"]]
    for epoch in [metrics.get("initial") or {}, *(metrics.get("epochs") or [])]:
        number = epoch.get("epoch")
        simulated = (epoch.get("simulated") or {}).get("mean_acceptance_length")
        mark = " *" if number == best and epoch is not metrics.get("initial") else ""
        rows.append([f"{number}{mark}", *map(_number, (epoch.get("loss"), epoch.get("validation_loss"), simulated))])
    return columns(rows)


def _acceptance(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what was accepted, and whether the output is that of the verifier alone."""
    rows = [["", "drafts", "accepted", "mean length", "accepted by position"]]
    for name in ("served", "untrained", "simulated"):
        found: Mapping[str, Any] = evaluation.get(name) or {}
        drafts = found.get("drafts") or 0
        shares = [f"{count / drafts:.2f}" for count in found.get("accepted_per_position") or [] if drafts]
        length = _number(found.get("mean_acceptance_length"))
        rows.append([name, str(drafts), str(found.get("accepted", "-")), length, " ".join(shares)])
    lines = columns(rows)
    for dtype, lossless in (evaluation.get("lossless") or {}).items():
        lines.append(f"greedy output in {dtype}: {lossless['identical']} of {lossless['prompts']} prompts identical")
    return lines


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "-"


def _section(title: str) -> None:
    click.echo(f"\n{title}")


def _aligned(values: Mapping[str, object]) -> None:
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        text = value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
        click.echo(f"  {name:<{width}}  {text}")
