"""The stage `draft`: train a draft model on tokens and hidden states."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specc.core.algorithms import algorithm, directed, vocabulary_of
from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty
from specc.core.stage import Stage
from specc.train.checkpoints import Checkpoints, Progress
from specc.train.data import Corpus
from specc.train.determinism import set_determinism, stream
from specc.train.engine import Engine
from specc.train.initial import initial_weights
from specc.train.loader import Ahead
from specc.train.loggers import Logs, logged
from specc.train.losses import check_losses
from specc.train.models import Batch, DraftModel, build, read_verifier
from specc.train.optim import learning_rate
from specc.train.order import Plan, Step, packed
from specc.train.phases import Phase
from specc.train.states import OnDisk
from specc.train.streamed import Streamed
from specc.train.validation import Validation

DTYPES: Final = {"bf16": torch.bfloat16, "fp32": torch.float32}
EVERY: Final = 0.5
"""Seconds between two lines of progress."""


def train_draft(stage: Stage, phase: Phase) -> None:
    """Train to the end of a phase, and tell the loggers that the spec names."""
    with logged(stage, first=os.environ["RANK"] == "0") as logs:
        _train(stage, phase, logs)


def _train(stage: Stage, phase: Phase, logs: Logs) -> None:
    """Train to the end of a phase; after the last one, write the best epoch's weights, the initial ones, the metrics.

    The best epoch is the one with the highest simulated mean acceptance length, not the lowest loss: what is
    served is a walk over drafts, and the loss averages over places where no draft starts.
    """
    draft, train, data = (stage.params[name] for name in ("draft", "train", "data"))
    config = stage.params["verifier"]["config"]
    losses = check_losses(train["loss"])
    set_determinism(int(stage.facets["threads"]))
    clock = Clock()

    with clock("read"):
        d2t = _vocabulary(stage)
        frozen = read_verifier(stage.input("verifier"), config, d2t, DTYPES[train["precision"]])
        layers = [*algorithm(draft["algorithm"]).layers(draft), config["num_hidden_layers"]]
        tokens = stage.input("tokens")
        states = _states(stage, tokens, layers)
        corpus = Corpus(tokens, states)
        plan = Plan(corpus, train, shuffle=data["shuffle"], window=data["shuffle_window"])
        if phase.until is not None and phase.until >= plan.total:
            raise SpeccError(f"a phase of `runtime.train.ranks` ends after step {phase.until}, and the training has"
                             f" {plan.total} steps", code=Exit.INPUT,
                             hint="give the phase an earlier end, or remove the ones after it")  # fmt: skip
        _say(stage, corpus)
        fixed = packed(corpus.validation, range(len(corpus.validation)), train["batch_tokens"])
        steps, _ = algorithm(draft["algorithm"]).drafted(draft)
        validate = Validation(corpus, fixed, frozen, losses, steps)

    def model(weights: Mapping[str, Tensor]) -> DraftModel:
        return build(draft, config, weights, frozen, d2t)

    def batch_of(step: Step) -> Batch:
        random = stream(train["seed"], "draft", "places", step.number)
        return corpus.batch(step.documents, trained, frozen.normed, random, rank=engine.rank, world=engine.world)

    def measured(weights: Mapping[str, Tensor], epoch: int) -> dict[str, Any]:
        said, rows = time.monotonic(), len(corpus.validation)

        def say(done: int) -> None:
            nonlocal said
            if time.monotonic() - said > EVERY:
                said = time.monotonic()
                text = f"epoch {epoch} of {plan.epochs}" if epoch else "before training"
                stage.progress(done, rows, "validation rows", text)

        return validate(model(weights), say)

    with clock("start"):
        checkpoints = Checkpoints.of(stage.work, phase.number, stage.job.key)
        saved = checkpoints.restore(stage.warn)
        if isinstance(states, Streamed):
            after = saved.progress.step if saved else 0
            shards = int((corpus.training.firsts.diff() > 0).sum())
            states.expect((window.shards for _, window, _ in plan.windows_from(after)), shards, corpus.validation)
            stage.progress(after, plan.total, "steps", "waiting for hidden states")  # which starts those that make them
        # As the engine rounds them: the masters of bf16 parameters start from bf16.
        initial = {
            name: tensor.to(frozen.embed_tokens.dtype).to(torch.float32)
            for name, tensor in initial_weights(stage).items()
        }
        trained = model({name: saved.state[name] for name in initial} if saved else initial)
        engine = Engine(trained, train, directed(algorithm(draft["algorithm"]).layout(draft, config)),
                        watched=bool(stage.job.context.get("loggers")))  # fmt: skip
        progress, best = (saved.progress, saved.best) if saved else (Progress(), None)
    first = engine.rank == 0
    if saved is not None:
        stage.note(f"training goes on after step {progress.step} of {plan.total}")

    save_every, positions, said = int(stage.job.context.get("save_every", 0)), 0, 0.0
    end = min(plan.total, phase.until or plan.total)
    with Ahead(batch_of, islice(plan.from_step(progress.step), end - progress.step)) as batches:
        while progress.step < end:
            spent = clock.seconds["data"] + clock.seconds["step"]
            with clock("data"):
                step, batch = next(batches)
            if saved is not None:
                with clock("start"):
                    engine.take_up(saved.state, batch, losses)
                saved = None
            with clock("step"):
                rate = learning_rate(progress.step, plan.total, train["optimizer"]["learning_rate"], train["schedule"])
                loss = engine.step(rate, batch, losses)
            if not math.isfinite(loss):
                raise SpeccError(f"the loss is {loss} at step {progress.step}", code=Exit.STAGE,
                                 hint="lower `train.optimizer.learning_rate`, or set"
                                      " `train.precision: fp32`")  # fmt: skip
            progress.step += 1
            progress.losses.append(loss)
            rows = sum(document.rows for document in step.documents)
            whole = clock.seconds["data"] + clock.seconds["step"]
            positions += rows
            rate_now = positions / whole
            for text in logs.step(progress.step, loss=loss, learning_rate=rate, gradient_norm=engine.gradient_norm,
                                  tokens_per_second=rows / (whole - spent)):  # fmt: skip
                stage.warn(text)
            if time.monotonic() - said > EVERY or progress.step == plan.total:
                said = time.monotonic()
                text = f"epoch {step.epoch} of {plan.epochs}, loss {loss:.3f}, {rate_now:.0f} tokens/s"
                stage.progress(progress.step, plan.total, "steps", text)
            if step.done:
                corpus.window_done()
            ends = step.last or progress.step == plan.total
            if not (ends or progress.step == end or (save_every and progress.step % save_every == 0)):
                continue
            with clock("checkpoint"):
                state = engine.state()
            if ends:
                with clock("validation"):
                    mean = math.fsum(progress.losses) / len(progress.losses)
                    if first and not progress.initial:  # not before, so that no state is needed before the first step's
                        progress.initial = {"epoch": 0, "loss": None, **measured(initial, 0)}
                        logs.epoch(0, progress.initial)
                    if first:
                        weights = {name: state[name] for name in initial}
                        progress.epochs.append({"epoch": step.epoch, "loss": mean, **measured(weights, step.epoch)})
                        logs.epoch(progress.step, progress.epochs[-1])
                        if _best(progress.epochs, validated=bool(corpus.validation)) == step.epoch:
                            progress.best, best = step.epoch, weights
                    progress.losses = []
            with clock("checkpoint"):
                if first:
                    checkpoints.save(progress, state, best)

    engine.close()
    if isinstance(states, Streamed):
        stage.record["waited"] = round(states.waited, 3)
    stage.record["parts"] = {name: round(seconds, 3) for name, seconds in clock.seconds.items()}
    if not first or end < plan.total:
        return
    if best is None:
        raise SpeccError(
            "training ended before its first epoch", hint="delete the stage's work folder", code=Exit.STAGE
        )
    metrics = {
        "algorithm": draft["algorithm"],
        "steps": plan.total,
        "tokens_per_epoch": plan.tokens,
        "initial": progress.initial,
        "epochs": progress.epochs,
        "best_epoch": progress.best,
    }
    _write(stage.output, initial, best, metrics)
    if positions:
        stage.record["tokens_per_second"] = round(positions / (clock.seconds["step"] + clock.seconds["data"]), 1)


class Clock:
    """Seconds spent in named parts."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Generator[None]:
        """Add the block's time to `part`."""
        start = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - start


def _states(stage: Stage, tokens: Path, layers: Sequence[int]) -> OnDisk | Streamed:
    """Return where hidden states are read from: an artifact, or what is computed meanwhile."""
    folder = stage.input("hidden_states")
    if stage.job.inputs["hidden_states"].digest:
        return OnDisk(folder, tokens, layers)
    verifier = stage.params["verifier"]
    about = {"layers": layers, "hidden_size": verifier["config"]["hidden_size"], "dtype": verifier["dtype"]}
    return Streamed(folder, tokens, about, stage.job.context["stream"])


def _vocabulary(stage: Stage) -> Tensor | None:
    """Return d2t int64 `[draft vocabulary]`, or None for the full vocabulary."""
    if "vocabulary" not in stage.job.inputs:
        return None
    d2t = load_file(stage.input("vocabulary") / "vocabulary.safetensors")["d2t"].clone()
    size = vocabulary_of(stage.params["draft"], stage.params["verifier"]["config"])
    if len(d2t) != size:
        raise SpeccError(f"the vocabulary map has {len(d2t)} tokens and `draft.vocabulary` is {size}", code=Exit.STAGE)
    return d2t


def _say(stage: Stage, corpus: Corpus) -> None:
    if corpus.left_out:
        stage.note(f"{corpus.left_out} rows have no response to learn from and are left out")
    if not corpus.validation:
        stage.warn("there are no validation rows: the last epoch is taken, and nothing says how good it is")


def _best(epochs: list[dict[str, Any]], *, validated: bool) -> int:
    """Return the best epoch so far: the first with the highest acceptance, or the last without validation."""
    if not validated:
        return epochs[-1]["epoch"]
    return max(epochs, key=lambda epoch: epoch["simulated"]["mean_acceptance_length"])["epoch"]


def _write(output: Path, initial: dict[str, Tensor], best: dict[str, Tensor], metrics: dict[str, Any]) -> None:
    save_file(dict(sorted(best.items())), output / "model.safetensors")
    save_file(dict(sorted(initial.items())), output / "initial.safetensors")
    (output / "metrics.json").write_text(pretty(metrics))
