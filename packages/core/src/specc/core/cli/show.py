"""`specc show`: an artifact, where it is from, what it measured, how to serve it; or its lineage, drawn."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from specc.core.cli.lineage import Lineage, trace
from specc.core.cli.measured import tables
from specc.core.cli.options import MEASURED, ONLY, columns, human, minutes, number, one_format, print_json
from specc.core.cli.target import is_spec
from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.files import flatten
from specc.core.measure.acceptance import greedy
from specc.core.store import Store
from specc.core.store.manifests import SHORT

FORMATS: Final = ("text", "json", "mermaid", "svg", "html")


@click.command("show", short_help="an artifact: where it is from, what it measured")
@click.argument("target", metavar="ID|SPEC")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Mermaid and SVG draw what the artifact was made of, back to the verifier; HTML is a page with all of it.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as `--format json`.")
@click.option(
    "--tokens", type=click.IntRange(min=1), metavar="N", help="Show N rows of SPEC's data as they will be trained."
)
@click.option("--source", metavar="FILE", help="With `--tokens`, rows of this data file alone.")
@click.option("--row", type=click.IntRange(min=1), metavar="LINE", help="With `--tokens`, the row on this line alone.")
@ONLY
def command(target: str, form: str | None, as_json: bool, only: tuple[str, ...], **rows: Any) -> int:
    """Show an artifact by (the start of) its ID, or what the last build of SPEC made.

    Of a spec with a matrix its builds are put side by side, the longest acceptance first. `--format html` writes a page
    with charts, tables, the graph and the lock, which needs no network.

    With `--tokens`, which needs nothing built, rows of the spec's data are shown as the verifier's chat template writes
    them, and what is trained of them is marked.
    """
    form = one_format(form, as_json, "text")
    if any(rows.values()):
        if not is_spec(target) or form not in ("text", "json"):
            raise SpeccError("`--tokens` shows rows of a spec's data, as text or JSON",
                             hint="`specc show SPEC --tokens 5`", code=Exit.USAGE)  # fmt: skip
        from specc.core.cli.rows import show_rows

        return show_rows(Path(target), only=only, json=form == "json", **rows)
    if form == "html":
        from specc.core.cli.report import report_of_artifact, report_of_spec

        spec = is_spec(target)
        click.echo(report_of_spec(Path(target), only) if spec else report_of_artifact(target), nl=False)
        return Exit.OK
    if is_spec(target):
        return _show_spec(Path(target), form, only)
    store = Store.locate(Path.cwd() / "spec.yaml")
    digest = store.resolve(target)
    manifest = store.manifest(digest)
    if form == "json":
        print_json(_as_data(store, manifest, trace(store, [manifest])))
    elif form == "text":
        _print(store, manifest, trace(store, [manifest]), serve=digest[:SHORT])
    else:
        _draw(trace(store, [manifest]), form)
    return Exit.OK


def _show_spec(path: Path, form: str, only: tuple[str, ...]) -> int:
    """Show what the last build of a spec made: the checkpoint and the evaluation, else how far it came."""
    from specc.core.language import check, matrix  # an id is shown without the language
    from specc.core.plan import ROWS, plan_name

    specs = {checked.build: checked.spec.values() for checked in check(path)}
    chosen = matrix.choose(list(specs), only)
    if len(chosen) > 1 and form in ("text", "json"):
        from specc.core.cli.compare import print_compared
        from specc.core.compiler import compile_builds

        return print_compared(compile_builds(path).chosen(only), json=form == "json")
    first = specs[chosen[0]]
    store = Store.locate(path, first["runtime"].get("store"))
    names = [plan_name(specs[build], build) for build in chosen]
    known = [[item for stage in ROWS if (item := store.last(name, stage)) is not None] for name in names]
    shown = [item for items in known for item in _results(items)]
    if not shown:
        raise never_built(names[0], store, path)
    keys = [item.key for items in known for item in items]
    if form == "json":
        found = {item.stage: _as_data(store, item, trace(store, [item], keys)) for item in shown}
        print_json({"name": names[0], "artifacts": found})
    elif form == "text":
        for index, item in enumerate(shown):
            if index:
                click.echo()
            _print(store, item, trace(store, [item], keys), serve=str(path))
    else:
        _draw(trace(store, shown, keys), form)
    return Exit.OK


def never_built(name: str, store: Store, spec: Path) -> SpeccError:
    """Return the error for a spec of which nothing is to be shown."""
    return SpeccError(f"`{name}` was never built here", where=str(store.root), hint=f"`specc build {spec}` builds it")


def _results(known: list[Manifest]) -> list[Manifest]:
    """Return the artifacts that a build is for, or else the last one that it made."""
    return [item for item in known if item.stage in ("checkpoint", "evaluation", "benchmark")] or known[-1:]


def _draw(lineage: Lineage, form: str) -> None:
    """Print a drawing of a lineage."""
    from specc.core.cli.mermaid import mermaid
    from specc.core.cli.svg import svg

    click.echo({"mermaid": mermaid, "svg": svg}[form](lineage), nl=False)


def _as_data(store: Store, manifest: Manifest, lineage: Lineage) -> dict[str, Any]:
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
        "streamed": {slot: manifest.keys[slot] for slot in manifest.streamed},
        "lineage": [asdict(node) for node in lineage.nodes.values()],
        "record": store.record(manifest.key),
        "measured": _measured(store, manifest) if here else None,
    }


def _print(store: Store, manifest: Manifest, lineage: Lineage, *, serve: str) -> None:
    """Print an artifact's page."""
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
        for line in _tree(lineage, manifest.digest, set()):
            click.echo(f"  {line}")
    for slot in manifest.streamed:
        click.echo(f"  and of {slot}, streamed (key {manifest.keys[slot][:8]})")
    measured = _measured(store, manifest) if here else None
    if measured is not None:
        _section("measured")
        for line in _table(manifest.stage, measured, record):
            click.echo(f"  {line}".rstrip())
    if manifest.stage == "checkpoint":
        _section("serve it")
        click.echo(f"  specc serve {serve}")


def _table(stage: str, measured: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Return what a stage measured as lines; a benchmark's speeds are of its run's record."""
    if stage == "benchmark":
        return tables(measured, record.get("benchmark"))
    return _epochs(measured) if stage == "draft" else _acceptance(measured)


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
            hint=f"`specc verify {manifest.digest[:SHORT]}` hashes the artifact again",
            code=Exit.DIFFERENCE,
        ) from error


def _tree(lineage: Lineage, target: str, seen: set[str]) -> Iterator[str]:
    """Yield the lines of an artifact's ancestors; one that was shown before is not unfolded again."""
    inputs = list(lineage.nodes[target].inputs.items())
    for index, (slot, digest) in enumerate(inputs):
        node, last = lineage.nodes[digest], index == len(inputs) - 1
        branch, bar = ("└─", "   ") if last else ("├─", "│  ")
        if node.size is None:
            yield f"{branch} {slot} {node.short} (no longer in the store)"
            continue
        name = slot if slot == node.stage else f"{slot} ({node.stage})"
        again = ", see above" if digest in seen and node.inputs else ""
        yield f"{branch} {name} {node.short}  {human(node.size)}{again}"
        if digest not in seen:
            seen.add(digest)
            for line in _tree(lineage, digest, seen):
                yield f"{bar}{line}"


def _epochs(metrics: Mapping[str, Any]) -> list[str]:
    """Return the epochs of a training as a table; the one that was kept has a star."""
    best = metrics.get("best_epoch")
    rows = [["epoch", "loss", "validation", "acceptance length (simulated)"]]
    for epoch in [metrics.get("initial") or {}, *(metrics.get("epochs") or [])]:
        count = epoch.get("epoch")
        simulated = (epoch.get("simulated") or {}).get("mean_acceptance_length")
        mark = " *" if count == best and epoch is not metrics.get("initial") else ""
        rows.append([f"{count}{mark}", *map(number, (epoch.get("loss"), epoch.get("validation_loss"), simulated))])
    return columns(rows)


def _acceptance(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what was accepted, and whether the output is that of the verifier alone."""
    rows = [["", "drafts", "accepted", "mean length", "accepted by position"]]
    for name in ("served", "untrained", "simulated"):
        found: Mapping[str, Any] = evaluation.get(name) or {}
        drafts = found.get("drafts") or 0
        shares = [f"{count / drafts:.2f}" for count in found.get("accepted_per_position") or [] if drafts]
        length = number(found.get("mean_acceptance_length"))
        rows.append([name, str(drafts), str(found.get("accepted", "-")), length, " ".join(shares)])
    lines = columns(rows)
    for dtype, lossless in greedy(evaluation).items():
        lines.append(f"greedy output in {dtype}: {lossless['identical']} of {lossless['prompts']} prompts identical")
    return lines


def _section(title: str) -> None:
    click.echo(f"\n{title}")


def _aligned(values: Mapping[str, object]) -> None:
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        text = value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
        click.echo(f"  {name:<{width}}  {text}")
