"""Several ranks under DeepSpeed's launcher: one training, which repeats, resumes and dies as one."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from specc.core.contracts import Failure, Note, Progress, StageResult, load_event  # noqa: E402
from train.world import MUON, TRAIN, World, digest, finish, kill_after, start  # noqa: E402

pytestmark = pytest.mark.engine
FULL = partial(pytest.param, marks=pytest.mark.full)
SHORT: dict[str, Any] = {"epochs": None, "steps": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=40, validation=4)


def trained(job: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a job; return its metrics and its weights less the initial ones."""
    events = finish(job)
    assert isinstance(events[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    output = job.parent / "output"
    before, after = load_file(output / "initial.safetensors"), load_file(output / "model.safetensors")
    return json.loads((output / "metrics.json").read_text()), {name: after[name] - before[name] for name in after}


@pytest.fixture(scope="module")
def alone(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    return trained(world.job("alone", train=SHORT))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_as_one_does(world: World, alone: tuple[dict[str, Any], dict[str, Any]], stage: int) -> None:
    """Up to the order of sums: a rank's share of the loss is weighted by what it counts, not by its rows."""
    metrics, moved = trained(world.job(f"two-{stage}", train=SHORT | {"zero": {"stage": stage}}, ranks=2))
    for here, there in zip(metrics["epochs"], alone[0]["epochs"], strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
        assert here["validation_loss"] == pytest.approx(there["validation_loss"], rel=1e-4)
    for name, tensor in moved.items():
        apart = (tensor - alone[1][name]).abs().mean() / alone[1][name].abs().mean()
        assert apart < 1e-3, name


BY_MUON: dict[str, Any] = SHORT | {"optimizer": MUON, "gradient_clipping": 0.5}


@pytest.fixture(scope="module")
def by_muon(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    return trained(world.job("muon-alone", train=BY_MUON))


@pytest.mark.parametrize("stage", [FULL(0), 1, FULL(2), 3])
def test_two_ranks_make_one_direction_of_a_matrix(
    world: World, by_muon: tuple[dict[str, Any], dict[str, Any]], stage: int
) -> None:
    """Every stage has the same momenta, whole, whichever rank holds which part of a gradient."""
    _, moved = trained(world.job(f"muon-{stage}", train=BY_MUON | {"zero": {"stage": stage}}, ranks=2))
    for name, tensor in moved.items():
        # Last bits of a gradient are magnified in the directions where it is small.
        assert (tensor - by_muon[1][name]).norm() < 5e-2 * by_muon[1][name].norm(), name


RESUMED: dict[str, dict[str, Any]] = {
    "0 fp32 muon": {"zero": {"stage": 0}, "optimizer": MUON},
    "1 bf16 muon": {"zero": {"stage": 1}, "optimizer": MUON, "precision": "bf16"},
    "2 bf16 adamw": {"zero": {"stage": 2}, "precision": "bf16"},
    "2 fp32 muon": {"zero": {"stage": 2}, "optimizer": MUON},
    "3 bf16 muon offloaded": {"zero": {"stage": 3, "offload": "parameters"}, "optimizer": MUON, "precision": "bf16"},
}


@pytest.mark.parametrize("case", [FULL("0 fp32 muon"), "1 bf16 muon", "2 bf16 adamw", FULL("2 fp32 muon"),
                                  "3 bf16 muon offloaded"])  # fmt: skip
def test_a_killed_run_of_two_ranks_goes_on_with_the_same_bits(world: World, case: str) -> None:
    train = {"epochs": 2} | RESUMED[case]
    whole, killed = (world.job(f"{name}-{case}", train=train, save_every=3, ranks=2) for name in ("whole", "killed"))
    finish(whole)
    ranks = kill_after(killed, 4)
    assert len(ranks) == 2
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks), "a rank outlived its launcher"
    notes = [event.text for event in finish(killed) if isinstance(event, Note)]
    assert any(note.startswith("training goes on after step ") for note in notes)
    assert sum(note.startswith("training goes on") for note in notes) == 1, "the first rank speaks for all"
    assert digest(killed) == digest(whole)


DECAY = 0.1
CHANGED: dict[str, dict[str, Any]] = {
    "0 adamw": {"zero": {"stage": 0}},
    "1 muon": {"zero": {"stage": 1}, "optimizer": MUON | {"weight_decay": DECAY}},
    "2 adamw": {"zero": {"stage": 2}},
    "3 muon": {"zero": {"stage": 3}, "optimizer": MUON | {"weight_decay": DECAY}},
    "3 adamw": {"zero": {"stage": 3}},
}


@pytest.mark.parametrize("case", [FULL("0 adamw"), "1 muon", FULL("2 adamw"), FULL("3 muon"), "3 adamw"])
def test_a_training_goes_on_with_another_number_of_ranks(world: World, case: str) -> None:
    """Moments, steps and all: up to the order of sums one training, in a class of its own."""
    train: dict[str, Any] = {"epochs": 2, "optimizer": TRAIN["optimizer"] | {"weight_decay": DECAY}} | CHANGED[case]
    (here, moved), (there, changed) = (
        trained(world.job(f"{name}-{case}", train=train, ranks=ranks))
        for name, ranks in (("one", 1), ("changed", "2x5+1"))
    )
    near = 5e-2 if "muon" in case else 2e-3
    for name in ("loss", "validation_loss"):
        assert [epoch[name] for epoch in there["epochs"]] == pytest.approx(
            [epoch[name] for epoch in here["epochs"]], rel=near / 10
        )
    for name, tensor in changed.items():
        assert (tensor - moved[name]).norm() < near * moved[name].norm(), name


def test_an_unfinished_training_is_taken_up_with_another_number_of_ranks(world: World) -> None:
    train = {"precision": "bf16", "epochs": 3}
    stopped = world.job("stopped", train=train, save_every=2, ranks=2)
    kill_after(stopped, 4)
    last = max((stopped.parent / "work/checkpoints/0").glob("step-*"))
    step = int(last.name.removeprefix("step-"))
    taken, whole = (
        world.job(name, train=train, ranks=f"2x{step}+1", earlier=earlier)
        for name, earlier in (("taken", stopped), ("from-the-start", None))
    )
    notes = [event.text for event in finish(taken) if isinstance(event, Note)]
    assert sum(note.startswith(f"training goes on after step {step} of ") for note in notes) == 1, notes
    finish(whole)
    assert digest(taken) == digest(whole)
    refused = finish(world.job("refused-step", train=train, ranks=f"2x{step - 1}+1", earlier=stopped))[-1]
    assert isinstance(refused, Failure)
    assert refused.message == (
        f"the training to be gone on with stands after step {step}, and `runtime.train.ranks` ends it after step"
        f" {step - 1}"
    )


def test_a_phase_beyond_the_last_step_is_refused(world: World) -> None:
    refused = finish(world.job("beyond", train=SHORT, ranks="2x4+1"))[-1]
    assert isinstance(refused, Failure)
    assert refused.message == "a phase of `runtime.train.ranks` ends after step 4, and the training has 4 steps"


def test_three_ranks_share_what_they_do_not_divide(world: World) -> None:
    """At stage 3 every rank has a part of each parameter, the last one a smaller one."""
    train = SHORT | {"optimizer": MUON, "gradient_clipping": 0.5, "zero": {"stage": 3}}
    _, alone = trained(world.job("undivided-alone", train=train))
    _, moved = trained(world.job("undivided", train=train, ranks="3x2+2"))
    for name, tensor in moved.items():
        assert (tensor - alone[name]).norm() < 5e-2 * alone[name].norm(), name


def test_a_rank_that_dies_ends_the_stage(world: World) -> None:
    process = start(world.job("dies", train={"epochs": 50}, ranks=2))
    assert process.stdout is not None
    for line in process.stdout:
        if isinstance(load_event(line), Progress):
            break
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def test_what_a_rank_refuses_is_said_in_words(world: World) -> None:
    failure = finish(world.job("refused", train={"precision": "bf16", "zero": {"stage": 0}}, ranks=2))[-1]
    assert isinstance(failure, Failure)
    assert "no fp32 masters for bf16" in failure.message
