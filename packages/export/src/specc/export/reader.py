"""Read a speculator in the speculators format and believe nothing of it before it is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specc.core.algorithms import algorithm
from specc.core.errors import SpeccError
from specc.core.files import TensorHeader, tensor_headers
from specc.export.formats import speculator_format
from specc.export.layout import DTYPES, require


def read_speculator(folder: Path) -> tuple[dict[str, Any], list[TensorHeader]]:
    """Return a speculator's configuration and the headers of its tensors, sorted by name.

    The tensors were held to the layout that the configuration implies. Raises `SpeccError` for a folder that
    is not a speculator, for a type that is not known, for fields that vLLM needs and does not find, and for
    any tensor that is missing, unknown or of another shape or dtype.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    for file in (path, weights):
        if not file.is_file():
            raise SpeccError(f"no speculator: `{file.name}` is missing", where=str(folder),
                             hint="a speculator is a folder with `config.json` and `model.safetensors`")  # fmt: skip
    config = _json(path)
    if "speculators_model_type" not in config:
        raise SpeccError("not in the speculators format: `speculators_model_type` is missing", where=str(path),
                         hint="`specc.export` reads what `specc build` and the speculators library write")  # fmt: skip
    if "model_type" in config:
        raise SpeccError("a top-level `model_type` makes vLLM take a speculator for a plain model", where=str(path),
                         hint="take it out; the decoder's own stands in `transformer_layer_config`")  # fmt: skip
    kind = speculator_format(config["speculators_model_type"], str(path))
    if str(config.get("dtype")) not in DTYPES:
        raise _malformed(": `dtype`", path)
    try:
        config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
        config["speculators_config"]["verifier"]["name_or_path"]
        layout = algorithm(kind.algorithm).layout(kind.draft(config), config["transformer_layer_config"])
    except KeyError as error:
        raise _malformed(f": `{error.args[0]}`", path) from error
    except (IndexError, TypeError) as error:
        raise _malformed("", path) from error
    headers = tensor_headers(weights)
    require(layout, headers, config["dtype"], where=str(weights))
    return config, headers


def _malformed(what: str, path: Path) -> SpeccError:
    return SpeccError(
        f"a field of the speculators format is missing or malformed{what}",
        where=str(path),
        hint="write the speculator again with its own library",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise SpeccError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise SpeccError("not a JSON object", where=str(path))
    return value
