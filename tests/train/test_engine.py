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

from specc.core.engines import deepspeed_config  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.train.muon import orthogonal  # noqa: E402
from train.passed import PASSED  # noqa: E402
from train.twin import CASES  # noqa: E402
from train.world import MUON, TRAIN, environment  # noqa: E402

pytestmark = pytest.mark.engine


def run(program: str, folder: Path, root: Path) -> dict[str, Any]:
    """Run a program of this folder, since DeepSpeed keeps one process group a process; return what it prints."""
    # The tests' own folder, and whatever else this interpreter looks in.
    path = os.pathsep.join([str(root / "tests"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", program, str(folder / "world")], env=environment(folder) | {"PYTHONPATH": path},
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Any]:
    return run("train.twin", tmp_path_factory.mktemp("twin"), root)


@pytest.mark.parametrize("case", CASES)
def test_masters_equal_those_of_torch(found: dict[str, Any], case: str) -> None:
    one = found[case]
    assert one["clipped"] == 4, "every step's gradient was longer than the limit"
    assert one["moved"] > 3e-3
    assert one["norm_apart"] < 1e-5, "the norm that is logged is that of the gradient before clipping"
    # At stage 3 sums end in other last bits, which AdamW's first step magnifies where a gradient is nearly zero.
    assert one["apart"] < (1e-5 if case.startswith("3") and "adamw" in case else 2e-6)


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Any]:
    return run("train.passed", tmp_path_factory.mktemp("passed"), root)


@pytest.mark.parametrize("case", PASSED)
def test_values_of_the_user_arrive_and_train_the_same(passed: dict[str, Any], case: str) -> None:
    given, one = PASSED[case], passed[case]
    assert one["values"]["communication_data_type"] == given.get("communication_data_type", "fp32")
    asked = {name: value for name, value in given["zero_optimization"].items() if not name.startswith("offload_")}
    assert {name: one["values"]["zero_optimization"][name] for name in asked} == asked
    assert one["moved"] > 3e-3
    assert one["apart"] < 2e-6


def test_values_of_the_user_go_before_our_defaults_and_not_before_other_fields() -> None:
    disk = {"device": "nvme", "nvme_path": "swap"}
    further = {"zero_optimization": {"overlap_comm": True, "offload_optimizer": disk}, "aio": {"queue_depth": 16}}
    plain = deepspeed_config(TRAIN | {"zero": {"stage": 3, "offload": "optimizer"}}, "cpu")
    given = deepspeed_config(TRAIN | {"zero": {"stage": 3, "offload": "optimizer"}, "deepspeed": further}, "cpu")
    assert given["aio"] == {"queue_depth": 16}
    offload = given["zero_optimization"].pop("offload_optimizer")
    assert offload == {**plain["zero_optimization"].pop("offload_optimizer"), **disk}
    assert given["zero_optimization"] == {**plain["zero_optimization"], "overlap_comm": True}
    other = {"zero_optimization": {"stage": 0}, "gradient_clipping": 9.0}  # which the language does not take
    assert deepspeed_config(TRAIN | {"deepspeed": other}, "cpu") == deepspeed_config(TRAIN, "cpu")
    assert further["zero_optimization"] == {"overlap_comm": True, "offload_optimizer": disk}  # as it was


def test_clipping_is_always_stated_and_off_where_it_is_our_own() -> None:
    assert deepspeed_config(TRAIN | {"gradient_clipping": None}, "cpu")["gradient_clipping"] == 0.0
    assert deepspeed_config(TRAIN, "cpu")["gradient_clipping"] == 1.0
    assert deepspeed_config(TRAIN | {"optimizer": MUON}, "cpu")["gradient_clipping"] == 0.0


def test_bf16_without_masters_is_refused() -> None:
    with pytest.raises(SpeccError, match="no fp32 masters for bf16 at ZeRO stage 0"):
        deepspeed_config(TRAIN | {"precision": "bf16", "zero": {"stage": 0, "offload": "none"}}, "cpu")


def test_a_direction_has_singular_values_near_one_and_the_singular_vectors_of_its_matrix() -> None:
    for shape in ((48, 48), (64, 16), (16, 64)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        turned = left.t() @ orthogonal(matrix).float() @ right.t()  # nearly diagonal
        assert turned.diagonal().min() > 0.6
        assert turned.diagonal().max() < 1.3
        assert (turned - turned.diagonal().diag()).abs().max() < 0.05
