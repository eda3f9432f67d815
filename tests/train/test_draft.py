"""The whole stage as a process: it learns, it repeats bit for bit, it survives a kill, it fails in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from specc.core.contracts import Failure, Note, Progress, StageResult, load_event  # noqa: E402
from specc.core.files import tensor_headers  # noqa: E402
from specc.train.models import trained  # noqa: E402
from train.world import DRAFT, SMALL, VERIFIER, World, digest, finish, start  # noqa: E402

pytestmark = pytest.mark.engine
BF16: dict[str, Any] = {"precision": "bf16", "epochs": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=160, validation=8)


@pytest.fixture(scope="module")
def whole(world: World) -> tuple[Path, list[Any]]:
    """An uninterrupted run."""
    job = world.job("whole", train=BF16)
    return job, finish(job)


def test_it_learns_to_draft(whole: tuple[Path, list[Any]]) -> None:
    job, events = whole
    assert isinstance(events[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    metrics = json.loads((job.parent / "output/metrics.json").read_text())
    for step in metrics["initial"]["positions"]:
        assert step["right"] < 0.1 * step["counted"]
    best = metrics["epochs"][metrics["best_epoch"] - 1]
    for step in best["positions"]:
        assert step["right_so_far"] > 0.9 * step["counted"]
    assert metrics["initial"]["simulated"]["mean_acceptance_length"] < 1.2
    assert best["simulated"]["mean_acceptance_length"] > 3.5
    assert best["simulated"]["mean_acceptance_length"] == max(
        epoch["simulated"]["mean_acceptance_length"] for epoch in metrics["epochs"]
    )
    assert best["coverage"][0] == best["coverage"][1] == best["positions"][0]["counted"]
    assert best["validation_loss"] < 1 < metrics["initial"]["validation_loss"]
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2, 3, 4]


def test_the_artifact_holds_what_is_documented(whole: tuple[Path, list[Any]]) -> None:
    job, events = whole
    output = job.parent / "output"
    assert sorted(path.name for path in output.iterdir()) == [
        "initial.safetensors",
        "metrics.json",
        "model.safetensors",
    ]
    table = [(spec.name, spec.shape, "F32") for spec in trained(DRAFT, VERIFIER)]
    for name in ("initial", "model"):
        assert [(one.name, one.shape, one.dtype) for one in tensor_headers(output / f"{name}.safetensors")] == table
    record = events[-1].record
    progress = [event for event in events if isinstance(event, Progress) and event.unit == "steps"]
    assert set(record["parts"]) == {"read", "start", "data", "step", "validation", "checkpoint"}
    assert record["tokens_per_second"] > 0
    assert record["peak_rss"] > 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert (progress[-1].done, progress[-1].total) == (metrics["steps"], metrics["steps"])
    assert len(list((job.parent / "work/checkpoints/0").glob("*"))) == 1, "older checkpoints are gone"


def test_the_same_job_gives_the_same_bits(world: World, whole: tuple[Path, list[Any]]) -> None:
    again = world.job("again", train=BF16)
    finish(again)
    assert digest(again) == digest(whole[0])


def test_a_killed_run_goes_on_with_the_same_bits(world: World, whole: tuple[Path, list[Any]]) -> None:
    job = world.job("killed", train=BF16, save_every=7)
    process = start(job)
    assert process.stdout is not None
    for line in process.stdout:
        event = load_event(line)
        if isinstance(event, Progress) and event.unit == "steps" and event.done > 7:
            process.kill()
            break
    assert process.wait() == -9
    process.stdout.close()
    folder = job.parent / "work/checkpoints/0"
    assert folder.stat().st_mode & 0o777 == 0o700
    # A checkpoint that was being written, and one that somebody changed, are passed over.
    (folder / ".step-000000099").mkdir()
    damaged = folder / "step-000009999"
    damaged.mkdir()
    (damaged / "progress.json").write_text("{}")
    events = finish(job)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(note.startswith("training goes on after step ") for note in notes), notes
    assert "training checkpoint `step-000009999` is damaged and is not used" in notes
    assert digest(job) == digest(whole[0])


def test_init_takes_up_an_earlier_speculator(world: World, whole: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """One as others publish it: in several files, with another vocabulary and embeddings, and with fields left out."""
    trained_before = load_file(whole[0].parent / "output/model.safetensors")
    first = next(iter(trained_before))
    others = {
        "lm_head.weight": torch.zeros(SMALL // 2, 64),
        "embed_tokens.weight": torch.zeros(VERIFIER["vocab_size"], 64),
        "d2t": torch.arange(SMALL // 2),
    }
    files = ("config.json", "model-1.safetensors", "model-2.safetensors")
    save_file({first: trained_before[first]} | others, tmp_path / files[1])
    save_file({name: tensor for name, tensor in trained_before.items() if name != first}, tmp_path / files[2])
    config = {
        "speculators_model_type": "eagle3", "eagle_aux_hidden_state_layer_ids": DRAFT["hidden_state_layers"],
        "draft_vocab_size": SMALL // 2, "embed_requires_grad": True,
        **{key: DRAFT[key] for key in ("norm_before_fc", "norm_output")},
    }  # fmt: skip
    assert not DRAFT["fc_norm"]
    assert DRAFT["norm_before_residual"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    world.files = {f"init/{name}": str(tmp_path / name) for name in files}
    init = {"init": {"files": dict.fromkeys(files, "")}}
    job = world.job("init", draft=init, train={"epochs": None, "steps": 2, "zero": {"stage": 0}})
    notes = [event.text for event in finish(job) if isinstance(event, Note)]
    assert any("embeddings of its own" in note for note in notes)
    initial = load_file(job.parent / "output/initial.safetensors")
    assert all(torch.equal(initial[name], trained_before[name]) for name in initial)
    metrics = json.loads((job.parent / "output/metrics.json").read_text())
    assert metrics["initial"]["simulated"]["mean_acceptance_length"] > 3.5
    assert metrics["steps"] == 2

    (tmp_path / "config.json").write_text(json.dumps(config | {"norm_output": False}))
    failure = finish(world.job("other", draft=init))[-1]
    assert isinstance(failure, Failure)
    assert failure.message == "the speculator in `draft.init` has `norm_output` false and the draft true"
    assert failure.where == "draft.init"


def test_without_validation_rows_the_last_epoch_is_taken(tmp_path: Path) -> None:
    world = World(tmp_path / "w", rows=12, validation=0)
    job = world.job("blind", train={"epochs": 2, "zero": {"stage": 2}})
    events = finish(job)
    notes = [event for event in events if isinstance(event, Note)]
    assert [(note.level, note.text) for note in notes] == [
        ("warning", "there are no validation rows: the last epoch is taken, and nothing says how good it is")
    ]
    metrics = json.loads((job.parent / "output/metrics.json").read_text())
    assert metrics["best_epoch"] == 2
    assert metrics["epochs"][1]["validation_loss"] is None
    assert metrics["epochs"][1]["simulated"]["drafts"] == 0
