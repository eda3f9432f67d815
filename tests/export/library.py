"""Runs in a process that has the `speculators` library on its path: what it makes of exported directories.

Prints JSON: for each directory the class it loads, the tensors that are not the file's, and those that no file has; for
the last argument's inputs, also the tokens that its EAGLE-3 proposes at every row of every step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, steps: int) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from speculators.model import SpeculatorModel

    found: dict[str, Any] = {}
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        model: Any = SpeculatorModel.from_pretrained(str(path))
        state, tensors = model.state_dict(), load_file(path / "model.safetensors")
        differ = [
            name for name, tensor in tensors.items()
            if name not in state or state[name].dtype != tensor.dtype or not torch.equal(state[name], tensor)
        ]  # fmt: skip
        unset = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.isnan().any()]
        found[path.name] = {"class": type(model).__name__, "differ": differ, "unset": unset,
                            "added": sorted(state.keys() - tensors.keys())}  # fmt: skip
        if path.name == "eagle3":
            inputs = load_file(folder / "inputs.safetensors")
            ids, aux = inputs["ids"][None, 1:], inputs["aux"].flatten(1)[None, :-1]
            with torch.no_grad():
                drafted = model.eval()(aux, ids, torch.zeros_like(ids), ttt_steps=steps)
            drafted = drafted[0] if isinstance(drafted, tuple) else drafted
            rows = torch.stack([tokens[0] for tokens in drafted], 1)
            found[path.name]["drafted"] = (rows + model.d2t[rows]).tolist()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
