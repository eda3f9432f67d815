"""The stage `converted`: a draft of another repository becomes a folder that vLLM serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specc.core.algorithms.base import Tree
from specc.core.errors import SpeccError
from specc.core.fetch import download
from specc.core.files import entries, pretty, sha256_file, tensor_headers, write_atomic
from specc.core.layouts import Layout, assign, largest, layout, section
from specc.core.stage import Stage
from specc.export.convert.tensors import assemble, report
from specc.export.convert.weights import Weights
from specc.export.convert.words import card, config_json, own, provenance_json, specc_json
from specc.export.layout import require


def converted(stage: Stage) -> None:
    """Write `config.json`, `model.safetensors`, `README.md`, `specc.json`, `conversion.json` and `provenance.json`.

    The weights are the source's, in its own dtype; nothing is trained. Raises `SpeccError` for a source that is not
    what was pinned, for a tensor of it that has no place, and for one of the format's that it does not fill.
    """
    from safetensors.torch import save_file

    params, verifier = stage.params, stage.params["verifier"]["config"]
    row = layout(params["source"]["layout"])
    stage.progress(0, 4, "steps", "reading the source")
    files = _files(stage)
    config = _config(files.pop("config.json"))
    draft, decoder = section(row, config, verifier)
    weights = [files[name] for name in sorted(files)]
    source = Weights(
        weights, largest(row, draft, decoder), lambda path: _same(path, params["source"]["files"][path.name])
    )
    stage.progress(1, 4, "steps", "finding every tensor's place")
    draft = row.seen(draft, source.said())
    found = assign(row, draft, decoder, source.shapes)
    tensors, dtype = assemble(found, source, stage.input("verifier"), verifier)
    for name, why in found.ignored.items() if row.own else ():  # of a verifier all but its head is
        stage.note(f"`{name}` is left out: {why.why}")
    stage.progress(2, 4, "steps", "writing the tensors")
    path = stage.output / "model.safetensors"
    save_file(tensors, path)
    require(row.tensors(draft, decoder), tensor_headers(path), dtype, where=path.name)
    stage.progress(3, 4, "steps", "writing the card and the provenance")
    said = {**params, "draft": draft, "decoder": decoder, "export": {**params["export"], "dtype": dtype}}
    _write(stage.output, row, said, {**report(found), "own": own(found)})
    stage.progress(4, 4, "steps", "written")


def _write(folder: Path, row: Layout, params: Tree, found: Tree) -> None:
    """Write everything but the tensors; the provenance comes last, since it names the others' sha256."""
    parts: dict[str, Any] = {
        "config.json": config_json(row, params),
        "conversion.json": {"layout": row.name, **found},
        "specc.json": specc_json(params),
    }
    for name, value in parts.items():
        write_atomic(folder / name, pretty(value))
    write_atomic(folder / "README.md", card(row, params, found))
    write_atomic(folder / "provenance.json", pretty(provenance_json(params, entries(folder))))


def _files(stage: Stage) -> dict[str, Path]:
    """Return where the source's files are: on this machine, or fetched."""
    names = sorted(stage.params["source"]["files"])
    for name in names:
        if Path(name).name != name:
            raise SpeccError(f"`{name}` is not the name of a file in the source's folder")
    if (hub := stage.job.context.get("hub")) is None:
        found = {name: stage.file(f"source/{name}") for name in names}
    else:
        repo, commit, folder = hub["repo"], hub["revision"], stage.work / "hub"
        instead = "download the model and name its folder in its place"
        found = {
            name: download(repo, name, commit, folder, called=f"`{name}` of `{repo}`", instead=instead)
            for name in names
        }
    _same(found["config.json"], stage.params["source"]["files"]["config.json"])
    return found


def _same(path: Path, pinned: str) -> None:
    if sha256_file(path) != pinned:
        raise SpeccError(f"the source's file `{path.name}` is not the one that was pinned",
                         hint="convert it again, or `specc lock --upgrade data SPEC`")  # fmt: skip


def _config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SpeccError("not JSON", where=path.name) from error
    if not isinstance(value, dict):
        raise SpeccError("not a JSON object", where=path.name)
    return value
