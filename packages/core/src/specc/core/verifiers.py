"""Where a verifier's checkpoint keeps what a draft shares with it: its embeddings, its final norm, its head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from specc.core.errors import Exit, SpeccError
from specc.core.files import tensor_headers

EMBEDDING: Final = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
)
"""Names of the input embedding, `[vocabulary, hidden]`: in a model for text, inside one for more, and in older ones."""
NORM: Final = ("model.norm.weight", "model.language_model.norm.weight", "language_model.model.norm.weight")
"""Names of the final norm's gain, `[hidden]`."""
HEAD: Final = ("lm_head.weight", "language_model.lm_head.weight")
"""Names of the output embedding, `[vocabulary, hidden]`; absent where it is tied to the input's."""
DTYPES: Final = ("BF16", "F16", "F32")
"""safetensors' names of the dtypes whose values are weights as they are; others have scales beside them."""


def find_tensor(folder: Path, names: tuple[str, ...], shape: tuple[int, ...]) -> tuple[Path, str]:
    """Return the file and the name of one of `names` in a Hugging Face folder, from the headers of its files alone.

    Raises `SpeccError` if the folder has none of them or several, if the tensor has another shape or is quantised,
    or if a bias belongs to it.
    """
    files = tensor_files(folder)
    found = [name for name in names if name in files]
    if not found:
        raise _unfit(f"the verifier has no tensor `{names[0]}`", folder,
                     "its embeddings, final norm and head are read by their Hugging Face names, and it has them by"
                     " others")  # fmt: skip
    if len(found) > 1:
        raise _unfit(f"the verifier has both `{found[0]}` and `{found[1]}`", folder, "remove the one that is not used")
    (name,) = found
    bias = f"{name.removesuffix('.weight')}.bias"
    if bias in files:
        raise _unfit(f"the verifier has a tensor `{bias}`, which training does not know", folder,
                     "use a verifier with a final norm and a head without bias")  # fmt: skip
    header = next((one for one in tensor_headers(files[name]) if one.name == name), None)
    if header is None:
        raise _unfit(f"the verifier's index says that `{files[name].name}` has `{name}`, and it has not", folder,
                     "its files are not of one model")  # fmt: skip
    if header.shape != shape:
        raise _unfit(f"the verifier's tensor `{name}` has shape {list(header.shape)}, its configuration says"
                     f" {list(shape)}", folder, "its weights and its `config.json` are not of one model")  # fmt: skip
    if header.dtype not in DTYPES:
        raise _unfit(f"the verifier's tensor `{name}` is of dtype {header.dtype}", folder,
                     "use a verifier whose embeddings, final norm and head are not quantised")  # fmt: skip
    return files[name], name


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor of a Hugging Face folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    return {tensor.name: path for path in sorted(folder.glob("*.safetensors")) for tensor in tensor_headers(path)}


def _unfit(message: str, folder: Path, hint: str) -> SpeccError:
    return SpeccError(message, where=str(folder), hint=hint, code=Exit.STAGE)
