"""The stage `verifier`: the large model's files, checked, as one plain Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from specc.core.engines import KNOWN_AS
from specc.core.errors import Exit, SpeccError
from specc.core.fetch import download
from specc.core.files import CHUNK, pretty, sha256_file, tensor_headers, write_atomic
from specc.core.stage import Stage

PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CODE: Final = (".py",)


def verifier(stage: Stage) -> None:
    """Copy a model folder's files byte by byte, fetch them from a hub, or write a GGUF file as such a folder.

    The `config.json` of a family in `KNOWN_AS` is written with the family that its body is of.

    Raises `SpeccError` if a file has another sha256 than the lock says, if its weights are pickled only, or if
    a weight file's header does not describe it.
    """
    expected: Mapping[str, str] = stage.params["verifier"]["files"]
    if stage.params["verifier"]["format"] == "gguf":
        _dequantise(stage, expected)
    else:
        _take(stage, expected)
    _name_family(stage.output / "config.json")
    for path in sorted(stage.output.glob("*.safetensors")):
        tensor_headers(path)


def _take(stage: Stage, expected: Mapping[str, str]) -> None:
    """Write those of the model's files that are data; neither code nor pickles leave their place."""
    names = sorted(name for name in expected if not name.endswith((*PICKLED, *CODE)))
    if not any(name.endswith(".safetensors") for name in names):
        pickled = next((name for name in sorted(expected) if name.endswith(PICKLED)), None)
        raise SpeccError(
            f"the verifier's weights are pickled (`{pickled}`), and only safetensors are read"
            if pickled
            else "the verifier has no safetensors file",
            hint="load it once with transformers in a place you trust and `save_pretrained(folder)`, then name the"
            " folder",
            code=Exit.STAGE,
        )
    for name in names:
        if Path(name).name != name:
            raise SpeccError(f"`{name}` is not the name of a file in the verifier's folder", code=Exit.STAGE)
    hub: Mapping[str, str] | None = stage.job.context.get("hub")
    for number, name in enumerate(names):
        stage.progress(number, len(names), "files", name)
        source = _fetched(stage, hub, name) if hub else stage.file(f"verifier/{name}")
        _copy(source, stage.output / name, expected[name])
        if hub:
            source.unlink()
    stage.progress(len(names), len(names), "files")


def _fetched(stage: Stage, hub: Mapping[str, str], name: str) -> Path:
    return download(hub["repo"], name, hub["revision"], stage.work / "hub", called=f"`{name}` of `{hub['repo']}`",
                    instead="download the model and name its folder in `verifier.model`")  # fmt: skip


def _copy(source: Path, target: Path, expected: str) -> None:
    """Copy a file and check its sha256 on the way, so that it is read once."""
    state = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            state.update(chunk)
            writer.write(chunk)
    if state.hexdigest() != expected:
        raise _changed(source.name)


def _name_family(path: Path) -> None:
    """Let a `config.json` name the family that transformers knows in place of code, if it is one of `KNOWN_AS`."""
    raw: dict[str, Any] = json.loads(path.read_text())
    if other := KNOWN_AS.get(raw.get("model_type", "")):
        raw.pop("auto_map", None)
        write_atomic(path, pretty(raw | {"model_type": other}))


def _changed(name: str) -> SpeccError:
    return SpeccError(
        f"the verifier's file `{name}` is not the one that the lock names",
        hint="`specc lock --upgrade verifier SPEC` pins it as it is now",
        code=Exit.STAGE,
    )


def _dequantise(stage: Stage, expected: Mapping[str, str]) -> None:
    from specc.core.gguf import read_header
    from specc.datagen.gguf_model import write_model
    from specc.datagen.gguf_tokenizer import write_tokenizer

    params = stage.params["verifier"]
    ((name, pinned),) = expected.items()
    source = stage.file(f"verifier/{name}")
    if sha256_file(source) != pinned:
        raise _changed(name)
    header = read_header(source)
    write_tokenizer(header, stage.output, params["config"])
    size = sum(math.prod(tensor.shape) for tensor in header.tensors) / 1e6

    def done(count: int) -> None:
        stage.progress(count / 1e6, size, "M weights")

    write_model(source, stage.output, header=header, config=params["config"], dtype=params["dtype"], done=done)
