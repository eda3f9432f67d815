"""A training told to others as it goes: TensorBoard, trackio, wandb and MLflow, as `train.loggers` names them.

They decide nothing and cost a step nothing: a thread of its own opens them and writes, and one that fails is left out
from then on. A training that goes on after a kill repeats steps bit for bit, so that what was logged is not logged
again: before rows are sent, `logged.json` says up to where.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from specc.core.files import flatten, pretty, write_atomic
from specc.core.loggers import SECRETS, require
from specc.core.stage import Stage

EVERY: Final = 1.0
"""Seconds between two writes."""
PATIENCE: Final = 60.0
"""Seconds that the end of a training waits for its loggers."""
BEFORE: Final = (0, -1)
"""The last step and the last epoch of a logger that has been told nothing; the untrained draft's epoch is 0."""

SETTINGS: Final = {"WANDB_MODE": "offline", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
"""Variables of the loggers that hold unless the user's environment has them."""


@dataclass(frozen=True, slots=True)
class Row:
    """Values by name after an optimizer step, at a time in seconds since 1970; `epoch` if one ended there."""

    step: int
    time: float
    values: Mapping[str, float]
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What loggers call a training: a project, a run in it, an id that is its alone, a folder, and its parameters."""

    project: str
    name: str
    id: str
    folder: Path
    parameters: Mapping[str, Any]


class Writer(Protocol):
    """A logger at work."""

    def write(self, rows: Sequence[Row]) -> None:
        """Log rows, in the order of their steps."""
        ...

    def close(self) -> None:
        """Log what is left, and end."""
        ...


class Logs:
    """The loggers of a training; without any, nothing is done."""

    def __init__(self, run: Run | None, names: Sequence[str]) -> None:
        self._queue: SimpleQueue[Row] = SimpleQueue()
        self._said: SimpleQueue[str] = SimpleQueue()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if run is not None:
            self._thread = threading.Thread(target=self._work, args=(run, names), daemon=True, name="loggers")
            self._thread.start()

    def step(self, step: int, **values: float | None) -> list[str]:
        """Log an optimizer step, counted from 1; return what there is to say of loggers that failed meanwhile."""
        self._put(Row(step, time.time(), {f"train/{name}": one for name, one in values.items() if one is not None}))
        return self.said()

    def epoch(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log an epoch that ended after a step, by its metrics as `metrics.json` has them."""
        positions, simulated = metrics.get("positions") or (), metrics.get("simulated") or {}
        values = {
            "train/epoch_loss": metrics.get("loss"),
            "validation/loss": metrics.get("validation_loss"),
            "validation/acceptance_length": simulated["mean_acceptance_length"] if simulated.get("drafts") else None,
            **{f"validation/accuracy_{place}": one["right"] / one["counted"]
               for place, one in enumerate(positions, start=1) if one["counted"]},
        }  # fmt: skip
        known = {name: float(value) for name, value in values.items() if value is not None}
        self._put(Row(step, time.time(), known, int(metrics["epoch"])))

    def close(self) -> list[str]:
        """Write what is left and end; return what is still to be said."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._said.put(f"a logger has not ended in {PATIENCE:.0f} s, and what it has not sent is lost")
        return self.said()

    def said(self) -> list[str]:
        """Return what there is to say, once."""
        found: list[str] = []
        while not self._said.empty():
            found.append(self._said.get())
        return found

    def _put(self, row: Row) -> None:
        if self._thread is not None:
            self._queue.put(row)

    def _work(self, run: Run, names: Sequence[str]) -> None:
        """Open the loggers and write rows until the end, in a thread of its own."""
        writers: dict[str, Writer] = {}
        marks = Marks(run.folder / "logged.json")
        for name in names:
            self._try(name, lambda name=name: writers.update({name: WRITERS[name](run)}))
        while True:
            ended = self._end.wait(EVERY)
            rows: list[Row] = []
            try:
                while True:
                    rows.append(self._queue.get_nowait())
            except Empty:
                pass
            for name, writer in list(writers.items()):
                if (new := marks.new(name, rows)) and not self._try(name, lambda w=writer, new=new: w.write(new)):
                    del writers[name]
            if ended:
                break
        for name, writer in writers.items():
            self._try(name, writer.close)

    def _try(self, name: str, act: Callable[[], object]) -> bool:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a logger raises, the training goes on
            print(clean("".join(traceback.format_exception(error))), file=sys.stderr)  # the stage's log
            self._said.put(f"the logger `{name}` failed ({type(error).__name__}) and is told no more of this training")
            return False
        return True


class Marks:
    """What each logger was told, in a file that outlives the training's process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._marks: dict[str, list[int]] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._marks = {}

    def new(self, name: str, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that a logger was not told yet, and remember them as told."""
        step, epoch = self._marks.get(name, BEFORE)
        fresh = [row for row in rows if (row.step > step if row.epoch is None else row.epoch > epoch)]
        if fresh:
            steps = [row.step for row in fresh if row.epoch is None]
            epochs = [row.epoch for row in fresh if row.epoch is not None]
            self._marks[name] = [max([step, *steps]), max([epoch, *epochs])]
            write_atomic(self._path, pretty(self._marks))
        return fresh


@contextmanager
def logged(stage: Stage, *, first: bool) -> Generator[Logs]:
    """Hold the loggers that the spec names, if this is the first rank; raises `SpeccError` if one is not installed.

    Their folder is named by the job's context, and is beside the log of the stage.
    """
    names: Sequence[str] = stage.job.context.get("loggers") or ()
    if not names or not first:
        yield Logs(None, ())
        return
    require(names)
    folder = Path(stage.job.context["log_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    label, key = str(stage.job.context["label"]), stage.job.key
    run = Run(
        project=str(stage.job.context["project"]),
        name=re.sub(r"[^A-Za-z0-9._=-]+", "-", label)[:80] + f"-{key[:8]}",
        id=key[:16],
        folder=folder,
        parameters=flatten({"draft": stage.params["draft"], "train": stage.params["train"]}),
    )
    stage.note(f"the training is logged to {', '.join(f'{name} ({_where(name)})' for name in names)} in {folder}")
    # Here and not in the thread: no other may read the environment while it changes.
    settings = {"TRACKIO_DIR": str(folder / "trackio"), **SETTINGS}
    os.environ.update({name: value for name, value in settings.items() if not os.environ.get(name)})
    logs = Logs(run, names)
    try:
        yield logs
    finally:
        for text in logs.close():
            stage.warn(text)


def clean(text: str) -> str:
    """Return what a logger said without what it was entrusted with: tokens, and names and passwords in addresses."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${name}")
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _where(name: str) -> str:
    """Say where a logger writes, in words that hold no address: that may hold a password."""
    match name:
        case "wandb":
            return os.environ.get("WANDB_MODE") or "offline"
        case "mlflow" if os.environ.get("MLFLOW_TRACKING_URI"):
            return "where MLFLOW_TRACKING_URI says"
        case "trackio" if os.environ.get("TRACKIO_SERVER_URL"):
            return "where TRACKIO_SERVER_URL says"
        case "trackio" if os.environ.get("TRACKIO_DIR"):
            return "where TRACKIO_DIR says"
        case _:
            return "files"


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, and see that they are in the file."""
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.time)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Trackio:
    """A run in a database in `trackio/`, or where TRACKIO_DIR or a server's address says."""

    def __init__(self, run: Run) -> None:
        import trackio

        self._run: Any = trackio.init(project=run.project, name=run.name, resume="allow", embed=False,
                                      auto_log_gpu=False, auto_log_cpu=False, config=dict(run.parameters))  # fmt: skip

    def write(self, rows: Sequence[Row]) -> None:
        """Hand rows to trackio's own thread."""
        for row in rows:
            self._run.log(dict(row.values), step=row.step)

    def close(self) -> None:
        """Wait for what was handed over."""
        self._run.finish()


class WandB:
    """A run in `wandb/`; kept there until `wandb sync`, unless WANDB_MODE says otherwise."""

    def __init__(self, run: Run) -> None:
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, init_timeout=PATIENCE / 2,
        )  # fmt: skip
        self._run: Any = wandb.init(project=os.environ.get("WANDB_PROJECT", run.project), name=run.name, id=run.id,
                                    resume="allow", dir=str(run.folder), config=dict(run.parameters),
                                    settings=quiet)  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def write(self, rows: Sequence[Row]) -> None:
        """Hand rows to wandb's own process, with their steps as a value: its own can only grow."""
        for row in rows:
            self._run.log({**row.values, "step": row.step})

    def close(self) -> None:
        """Wait for what was handed over."""
        self._run.finish()


class MLflow:
    """A run of the experiment that bears the spec's name, in `mlflow/` or where MLFLOW_TRACKING_URI says."""

    def __init__(self, run: Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlflow").as_uri())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.project)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        earlier = self._client.search_runs([experiment], f"tags.`specc.key` = '{run.id}'")
        if earlier:
            self._id = str(earlier[0].info.run_id)
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"specc.key": run.id, "mlflow.runName": run.name}
        self._id = str(self._client.create_run(experiment, tags=tags).info.run_id)
        params = [Param(name, str(value)[:500]) for name, value in run.parameters.items()]
        self._client.log_batch(self._id, params=params[:100])

    def write(self, rows: Sequence[Row]) -> None:
        """Log rows, at most 1,000 values at once, which is what a server takes."""
        metrics = [self._metric(name, value, round(row.time * 1000), row.step)
                   for row in rows for name, value in row.values.items()]  # fmt: skip
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._id, metrics=metrics[start : start + 1000])

    def close(self) -> None:
        """Say that the run is over."""
        self._client.set_terminated(self._id)


WRITERS: Final[Mapping[str, Callable[[Run], Writer]]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
    "mlflow": MLflow,
}
