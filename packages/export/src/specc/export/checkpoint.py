"""The stage `checkpoint`: a trained draft becomes a speculator that vLLM serves as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specc.core.algorithms import algorithm
from specc.core.algorithms.base import Tree
from specc.core.files import entries, pretty, tensor_headers, write_atomic
from specc.core.stage import Stage
from specc.export.card import card
from specc.export.config import speculator_config
from specc.export.layout import require
from specc.export.provenance import provenance, specc_json
from specc.export.weights import gather


def checkpoint(stage: Stage) -> None:
    """Write `config.json`, `model.safetensors`, `README.md`, `specc.json` and `provenance.json`.

    Raises `SpeccError` if a tensor of the algorithm's layout is missing, misnamed or of another shape.
    """
    params, inputs = stage.params, stage.job.inputs
    vocabulary = stage.input("vocabulary") if "vocabulary" in inputs else None
    stage.progress(0, 3, "steps", "gathering tensors")
    weights = stage.output / "model.safetensors"
    write_weights(params, weights, draft=stage.input("draft"), verifier=stage.input("verifier"), vocabulary=vocabulary)
    stage.progress(1, 3, "steps", "checking the layout")
    layout = algorithm(params["draft"]["algorithm"]).layout(params["draft"], params["verifier"]["config"])
    require(layout, tensor_headers(weights), params["export"]["dtype"], where=weights.name)
    stage.progress(2, 3, "steps", "writing the card and the provenance")
    write_words(params, stage.output)
    stage.progress(3, 3, "steps", "written")


def write_weights(params: Tree, path: Path, *, draft: Path, verifier: Path, vocabulary: Path | None) -> None:
    """Write the tensors to `path`, without metadata: the same tensors are the same bytes."""
    from safetensors.torch import save_file

    save_file(gather(params, draft, verifier, vocabulary), path)


def write_words(params: Tree, folder: Path) -> None:
    """Write everything but the tensors; the provenance comes last, since it names the others' sha256."""

    def write(name: str, value: dict[str, Any]) -> None:
        write_atomic(folder / name, pretty(value))

    write("config.json", speculator_config(params))
    write_atomic(folder / "README.md", card(params))
    write("specc.json", specc_json(params))
    write("provenance.json", provenance(params, entries(folder)))
