"""Train with values of the user's own under DeepSpeed, beside torch.optim, and print what DeepSpeed made of them.

A program of its own, as `train.twin` is: `python -m train.passed FOLDER` prints
`{"<stage> <precision> <optimizer> <offload>": {"apart", "moved", "clipped", "values"}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import torch

from specc.train.determinism import set_determinism
from specc.train.engine import Engine
from train import twin
from train.world import World

SHARED: Final[dict[str, Any]] = {
    "reduce_bucket_size": 1000, "allgather_bucket_size": 2000, "overlap_comm": True, "contiguous_gradients": False,
    "reduce_scatter": False, "round_robin_gradients": True, "use_multi_rank_bucket_allreduce": False,
}  # fmt: skip
WHOLE: Final[dict[str, Any]] = {
    "reduce_bucket_size": 1000, "overlap_comm": True, "contiguous_gradients": False, "reduce_scatter": False,
    "stage3_prefetch_bucket_size": 3000, "stage3_param_persistence_threshold": 10, "stage3_max_live_parameters": 4000,
    "stage3_max_reuse_distance": 5000,
}  # fmt: skip
PASSED: Final[dict[str, dict[str, Any]]] = {
    "1 bf16 adamw none": {"communication_data_type": "fp32", "zero_optimization": SHARED},
    "2 fp32 muon optimizer": {"zero_optimization": {**SHARED, "offload_optimizer": {"device": "cpu"}}},
    "3 bf16 adamw parameters": {"communication_data_type": "fp32",
                                "zero_optimization": {**WHOLE, "offload_param": {"device": "cpu"}}},
}  # fmt: skip
"""Values that no engine has by itself, for a case of `train.twin` each."""


class Noted(Engine):
    """The engine, which the twin makes for itself, kept to be looked at."""

    made: Noted

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        Noted.made = self


def values(engine: Any) -> dict[str, Any]:
    """Return what DeepSpeed's engine holds of the values, by their own names."""
    zero = engine._config.zero_config
    names = {field.alias or name: name for name, field in type(zero).model_fields.items()}
    return {
        "communication_data_type": {torch.float32: "fp32", torch.bfloat16: "bf16"}[engine.communication_data_type],
        "zero_optimization": {name: getattr(zero, names[name]) for name in {**SHARED, **WHOLE}},
    }


if __name__ == "__main__":
    set_determinism(1)
    world = World(Path(sys.argv[1]))
    twin.Engine = Noted
    found: dict[str, Any] = {}
    for case, given in PASSED.items():
        twin.TRAIN["deepspeed"] = given
        found[case] = {**twin.compare(world, case), "values": values(Noted.made.engine)}
    print(json.dumps(found))
