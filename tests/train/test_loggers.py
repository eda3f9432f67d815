"""`train.loggers`: all four are told what `metrics.json` says, a kill repeats nothing, and no bit is another."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

torch = pytest.importorskip("torch")

from specc.core.contracts import Note, StageResult  # noqa: E402
from specc.core.loggers import LOGGERS  # noqa: E402
from specc.train.loggers import WRITERS, Logs, Marks, Row, Run, clean  # noqa: E402
from train.world import TRAIN, World, digest, finish, kill_after  # noqa: E402

pytestmark = pytest.mark.engine
EVERY: Final = ("tensorboard", "trackio", "wandb", "mlflow")
EPOCHS: Final = {"epochs": 2}
PER_STEP: Final = {"train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second"}
History = dict[str, list[tuple[int, float]]]
"""(step, value) of each metric, in the order in which they were logged."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w", rows=80, validation=8)


@pytest.fixture(scope="module")
def silent(world: World) -> Path:
    """A training that nobody is told of."""
    job = world.job("silent", train=EPOCHS)
    assert isinstance(finish(job)[-1], StageResult)
    return job


@pytest.fixture(scope="module")
def told(world: World) -> tuple[Path, list[Any]]:
    """The same training, told to all."""
    job = world.job("told", train=EPOCHS, loggers=EVERY)
    events = finish(job)
    assert isinstance(events[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    return job, events


def tensorboard(logs: Path) -> History:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(logs / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def mlflow(logs: Path) -> History:
    """What MLflow's own client reads, in a process of its own: it is set up by the environment as it is imported."""
    program = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
[experiment] = [one for one in client.search_experiments() if one.name == "tiny"]
[run] = client.search_runs([experiment.experiment_id])
print(json.dumps({"status": run.info.status, "params": run.data.params, "metrics": {
    name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
    for name in run.data.metrics}}))
"""
    found = outside(
        program, (logs / "mlflow").as_uri(), MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"
    )
    assert found["status"] == "FINISHED"
    assert found["params"]["train.optimizer.name"] == "adamw"
    return {name: [(step, value) for step, value in rows] for name, rows in found["metrics"].items()}


def trackio(logs: Path) -> History:
    """What is in trackio's database."""
    rows: History = {}
    with sqlite3.connect(f"file:{logs / 'trackio' / 'tiny.db'}?mode=ro", uri=True) as database:
        for step, text in database.execute("SELECT step, metrics FROM metrics ORDER BY id"):
            for name, value in json.loads(text).items():
                rows.setdefault(name, []).append((step, value))
    return rows


def wandb(logs: Path) -> History:
    """What is in the files of wandb's runs, the earliest first: LevelDB's log format, with its protobuf records."""
    program = """
import json, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
def records(data):
    at, whole = 7, b""  # behind the file's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no record's header begins so near to the end of a block
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""
rows = []
for path in sys.argv[1:]:
    for record in records(Path(path).read_bytes()):
        if record.WhichOneof("record_type") == "history":
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append((values.pop("step"), values))
print(json.dumps(rows))
"""
    found: History = {}
    for step, values in outside(program, *map(str, sorted((logs / "wandb").glob("offline-run-*/*.wandb")))):
        for name, value in values.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((step, value))
    return found


def outside(program: str, *arguments: str, **environment: str) -> Any:
    """What a program prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False,
                          env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


READERS: Final = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb, "mlflow": mlflow}


def expected(metrics: dict[str, Any]) -> History:
    """What `metrics.json` says, as a logger has it."""
    per_epoch = metrics["steps"] // len(metrics["epochs"])
    found: History = {"train/epoch_loss": [(one["epoch"] * per_epoch, one["loss"]) for one in metrics["epochs"]]}
    for one in (metrics["initial"], *metrics["epochs"]):
        step = one["epoch"] * per_epoch
        found.setdefault("validation/loss", []).append((step, one["validation_loss"]))
        length = one["simulated"]["mean_acceptance_length"]
        found.setdefault("validation/acceptance_length", []).append((step, length))
        for place, counts in enumerate(one["positions"], start=1):
            share = counts["right"] / counts["counted"]
            found.setdefault(f"validation/accuracy_{place}", []).append((step, share))
    return found


def assert_complete(logs: Path, name: str, metrics: dict[str, Any]) -> History:
    """A logger has every step once and every epoch once, with the values of the artifact."""
    found = READERS[name](logs)
    assert set(found) >= PER_STEP, name
    for metric in PER_STEP:
        assert [step for step, _ in found[metric]] == list(range(1, metrics["steps"] + 1)), (name, metric)
    for metric, rows in expected(metrics).items():
        assert [step for step, _ in found[metric]] == [step for step, _ in rows], (name, metric)
        for (_, value), (_, right) in zip(found[metric], rows, strict=True):
            assert value == pytest.approx(right, rel=1e-6), (name, metric)
    return found


def test_every_logger_is_told_all_of_a_training(told: tuple[Path, list[Any]]) -> None:
    job, events = told
    metrics = json.loads((job.parent / "output/metrics.json").read_text())
    histories = {name: assert_complete(job.parent / "logs", name, metrics) for name in EVERY}
    losses = [value for _, value in histories["mlflow"]["train/loss"]]
    half = len(losses) // 2
    assert sum(losses[:half]) / half == pytest.approx(metrics["epochs"][0]["loss"])
    rates = [value for _, value in histories["wandb"]["train/learning_rate"]]
    assert max(rates) == pytest.approx(TRAIN["optimizer"]["learning_rate"])
    assert all(value > 0 for _, value in histories["trackio"]["train/gradient_norm"])
    assert all(value > 0 for _, value in histories["tensorboard"]["train/tokens_per_second"])
    notes = [(event.level, event.text) for event in events if isinstance(event, Note)]
    assert notes == [("info", "the training is logged to tensorboard (files), trackio (files), wandb (offline), mlflow"
                              f" (files) in {job.parent / 'logs'}")]  # fmt: skip


def test_no_bit_is_another_and_nothing_of_it_is_in_the_artifact(silent: Path, told: tuple[Path, list[Any]]) -> None:
    assert digest(told[0]) == digest(silent)
    assert not (silent.parent / "logs").exists()


def test_a_killed_training_logs_no_step_twice(world: World, silent: Path) -> None:
    job = world.job("killed", train=EPOCHS, save_every=5, loggers=("tensorboard", "mlflow"))
    kill_after(job, 12)
    path = job.parent / "logs/logged.json"  # which is not there yet if the libraries take long to import
    marks = json.loads(path.read_text()) if path.is_file() else {}
    events = finish(job)
    assert isinstance(events[-1], StageResult)
    [again] = [int(event.text.split()[5]) for event in events
               if isinstance(event, Note) and event.text.startswith("training goes on after step ")]  # fmt: skip
    assert digest(job) == digest(silent)
    steps = json.loads((job.parent / "output/metrics.json").read_text())["steps"]
    for name in ("tensorboard", "mlflow"):
        rows = [step for step, _ in READERS[name](job.parent / "logs")["train/loss"]]
        assert rows == sorted(set(rows)), name
        assert rows[-1] == steps
        # What was on its way to a logger as the process was killed, and is not trained again, is lost, and no more.
        assert set(range(max(again, marks.get(name, [0])[0]) + 1, steps + 1)) <= set(rows), name


def test_only_the_first_rank_logs(world: World) -> None:
    job = world.job(
        "ranks", train={"epochs": None, "steps": 3, "zero": {"stage": 2}}, ranks=2, loggers=("tensorboard",)
    )
    assert isinstance(finish(job)[-1], StageResult), (job.parent / "log").read_text()[-3000:]
    found = tensorboard(job.parent / "logs")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3]
    assert len(list((job.parent / "logs/tensorboard").iterdir())) == 1


def test_a_logger_that_is_not_installed_is_said_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from specc.core import loggers
    from specc.core.errors import SpeccError

    monkeypatch.setitem(LOGGERS, "trackio", loggers.Logger("specc_no_such_module"))
    with pytest.raises(SpeccError) as raised:
        loggers.require(("tensorboard", "trackio"))
    assert raised.value.message == "`train.loggers` names `trackio`, and it is not installed"
    assert "pip install 'specc[loggers]'" in (raised.value.hint or "")


class Broken:
    """A logger that fails at its second write."""

    def __init__(self, run: Run) -> None:
        self.writes = 0

    def write(self, rows: list[Row]) -> None:
        self.writes += 1
        if self.writes == 2:
            raise OSError("https://me:secret@example.org is gone")

    def close(self) -> None:
        raise AssertionError("it was left out")


def test_a_logger_that_fails_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WRITERS, "wandb", Broken)
    monkeypatch.setattr("specc.train.loggers.EVERY", 0.01)
    run = Run(project="p", name="n", id="i", folder=tmp_path, parameters={})
    logs = Logs(run, ("wandb", "tensorboard"))
    said: list[str] = []
    for step in range(1, 30):
        said += logs.step(step, loss=1.0 / step, gradient_norm=None)
        logs._end.wait(0.02)
    said += logs.close()
    assert said == ["the logger `wandb` failed (OSError) and is told no more of this training"]
    log = capfd.readouterr().err
    assert "https://example.org is gone" in log
    assert "secret" not in log
    assert [step for step, _ in tensorboard(tmp_path)["train/loss"]] == list(range(1, 30)), "the other one goes on"


def test_marks_outlive_a_process_and_tell_epochs_from_steps(tmp_path: Path) -> None:
    rows = [Row(0, 0.0, {}, 0), Row(1, 0.0, {}), Row(2, 0.0, {}), Row(2, 0.0, {}, 1)]
    marks = Marks(tmp_path / "logged.json")
    assert marks.new("a", rows[:3]) == rows[:3]
    again = Marks(tmp_path / "logged.json")
    assert again.new("a", rows) == rows[3:], "the epoch ended after the last step that was logged"
    assert again.new("a", rows) == []
    assert again.new("b", rows) == rows


def test_what_a_logger_was_entrusted_with_is_in_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123abcd")
    assert clean("key 0123abcd at https://name:word@host/path") == "key $WANDB_API_KEY at https://host/path"


def test_writers_are_those_that_the_language_names() -> None:
    assert set(WRITERS) == set(LOGGERS) == set(EVERY)
