"""Hold a checkpoint's tensors to the algorithm's layout table.

vLLM reports a tensor with an unknown name or a wrong shape, but says nothing of a missing one: the draft then
runs on whatever memory held, and only its acceptance shows it. So every checkpoint passes here first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from specc.core.algorithms import TensorSpec
from specc.core.errors import Exit, SpeccError
from specc.core.files import TensorHeader

DTYPES: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""safetensors' names of the dtypes that a draft may be exported in."""


def compare(layout: Iterable[TensorSpec], found: Iterable[TensorHeader], dtype: str) -> list[str]:
    """Return one line for every tensor that is missing, not in the layout, of another shape or another dtype.

    `dtype` is the export's (`bfloat16`), which stands for `"draft"` in the layout. A missing tensor and an
    unknown one of the same shape and a near name are told as one misnamed tensor. Empty if all is right.
    """
    wanted = {spec.name: spec for spec in layout}
    there = {tensor.name: tensor for tensor in found}
    unknown = {name: tensor for name, tensor in there.items() if name not in wanted}
    problems: list[str] = []
    for name, spec in sorted(wanted.items()):
        tensor = there.get(name)
        expected = DTYPES[dtype] if spec.dtype == "draft" else spec.dtype
        if tensor is None:
            alike = [other for other, item in unknown.items() if item.shape == spec.shape]
            near = difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
            if near:
                del unknown[near[0]]
                problems.append(f"`{name}` is named `{near[0]}`")
            else:
                problems.append(f"`{name}` {list(spec.shape)} is missing")
            continue
        if tensor.shape != spec.shape:
            problems.append(f"`{name}` is {list(tensor.shape)}, not {list(spec.shape)}")
        if tensor.dtype != expected:
            problems.append(f"`{name}` is {tensor.dtype}, not {expected}")
    problems += [f"`{name}` {list(item.shape)} is not in the layout" for name, item in sorted(unknown.items())]
    return problems


def require(
    layout: Iterable[TensorSpec], found: Iterable[TensorHeader], dtype: str, *, where: str, code: Exit = Exit.STAGE
) -> None:
    """Raise one `SpeccError` that names every tensor which `compare` finds fault with."""
    problems = compare(layout, found, dtype)
    if problems:
        count = f"{len(problems)} tensors do" if len(problems) > 1 else "1 tensor does"
        raise SpeccError(
            f"{count} not fit the layout: {'; '.join(problems)}",
            where=where,
            hint="vLLM would draft badly without a word; make the tensors anew from the stage before",
            code=code,
        )
