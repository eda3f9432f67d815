"""DeepSpeed's steps are torch.optim's, at every ZeRO stage, with clipping at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from specc.core.errors import SpeccError  # noqa: E402
from specc.train.engine import deepspeed_config  # noqa: E402
from specc.train.muon import orthogonal  # noqa: E402
from train.twin import CASES  # noqa: E402
from train.world import MUON, TRAIN, environment  # noqa: E402

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("twin")
    # The tests' own folder, and whatever else this interpreter looks in.
    path = os.pathsep.join([str(root / "tests"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "train.twin", str(folder / "world")], env=environment(folder) | {"PYTHONPATH": path},
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_masters_equal_those_of_torch(found: dict[str, Any], case: str) -> None:
    one = found[case]
    assert one["clipped"] == 4, "every step's gradient was longer than the limit"
    assert one["moved"] > 3e-3
    # At stage 3 sums end in other last bits, which AdamW's first step magnifies where a gradient is nearly zero.
    assert one["apart"] < (1e-5 if case.startswith("3 fp32 adamw") else 2e-6)


def test_clipping_is_always_stated_and_off_where_it_is_our_own() -> None:
    assert deepspeed_config(TRAIN | {"gradient_clipping": None})["gradient_clipping"] == 0.0
    assert deepspeed_config(TRAIN)["gradient_clipping"] == 1.0
    assert deepspeed_config(TRAIN | {"optimizer": MUON})["gradient_clipping"] == 0.0


def test_bf16_without_masters_is_refused() -> None:
    with pytest.raises(SpeccError, match="no fp32 masters for bf16 at ZeRO stage 0"):
        deepspeed_config(TRAIN | {"precision": "bf16", "zero": {"stage": 0, "offload": "none"}})


def test_a_direction_has_singular_values_near_one_and_the_singular_vectors_of_its_matrix() -> None:
    for shape in ((48, 48), (64, 16), (16, 64)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        turned = left.t() @ orthogonal(matrix).float() @ right.t()  # nearly diagonal
        assert turned.diagonal().min() > 0.6
        assert turned.diagonal().max() < 1.3
        assert (turned - turned.diagonal().diag()).abs().max() < 0.05
