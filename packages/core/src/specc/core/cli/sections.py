"""The sections of a report: what training and evaluation measured, how it was all made, and out of what values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from markupsafe import Markup

from specc.core.cli import charts
from specc.core.cli.charts import Chart, Series
from specc.core.cli.lineage import trace
from specc.core.cli.options import MEASURED, human, minutes, number
from specc.core.cli.page import Figure, Fold, Section, Table, bars, lines
from specc.core.cli.svg import svg
from specc.core.contracts import Manifest
from specc.core.language.text import printable
from specc.core.measure.acceptance import exact, greedy
from specc.core.plan import read_json
from specc.core.store import Store
from specc.core.store.manifests import SHORT

FILES: Final = {**MEASURED, "benchmark": "benchmark.json"}
"""The file of a stage's artifact that holds what it measured."""
DRAFTERS: Final = {"served": "with the engine", "simulated": "replayed", "untrained": "untrained"}
"""What an evaluation counts the acceptance of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A build as far as it is in the store: its artifacts by stage, and what tells it from the others."""

    name: str
    stages: Mapping[str, Manifest]
    store: Store

    def measured(self, stage: str) -> Mapping[str, Any]:
        """Return what a stage measured, empty if it did not, or if its artifact is gone."""
        item = self.stages.get(stage)
        return read_json(self.store, item.digest, FILES[stage]) if item else {}

    def record(self, stage: str) -> Mapping[str, Any]:
        """Return the record of a stage's last run."""
        return self.store.record(self.stages[stage].key) if stage in self.stages else {}

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """What training measured, the untrained draft first."""
        metrics = self.measured("draft")
        return [one for one in (metrics.get("initial"), *(metrics.get("epochs") or ())) if one]

    @property
    def kept(self) -> Mapping[str, Any]:
        """The epoch that the checkpoint is of."""
        metrics = self.measured("draft")
        every = metrics.get("epochs") or ()
        return next((one for one in every if one.get("epoch") == metrics.get("best_epoch")), {})

    @property
    def acceptance(self) -> float | None:
        """The mean acceptance length on held-out prompts."""
        return (self.measured("evaluation").get("served") or {}).get("mean_acceptance_length")


def compared(builds: Sequence[Built]) -> Section:
    """Return the builds side by side, the longest acceptance first."""
    ranked = sorted(builds, key=lambda one: -(one.acceptance or 0.0))
    rows = [
        [one.name, number(one.acceptance), " ".join(f"{share:.2f}" for share in _served(one)) or "-",
         number(one.kept.get("validation_loss"), 2), *_training_cells(one),
         human(one.stages["checkpoint"].size) if "checkpoint" in one.stages else "-",
         one.stages["checkpoint"].digest[:SHORT] if "checkpoint" in one.stages else "-"]
        for one in ranked
    ]  # fmt: skip
    head = ["build", "acceptance length", "by position", "loss", "training", "tokens/s", "size", "checkpoint"]
    return Section(id="builds", title="Builds", tables=[Table(head=head, rows=rows, words=(0, 7))],
                   text="The longest acceptance first. Each algorithm has a loss of its own: compare their courses, not"
                        " their heights.")  # fmt: skip


def _served(build: Built) -> list[float]:
    return _shares(build.measured("evaluation").get("served"))


def _training_cells(build: Built) -> list[str]:
    record = build.record("draft")
    return [minutes(record["seconds"]) if "seconds" in record else "-", number(record.get("tokens_per_second"), 0)]


def training(builds: Sequence[Built]) -> Section | None:
    """Return the course of training: losses, right guesses and simulated acceptance by epoch."""
    shown = _charted([one for one in builds if one.epochs])
    if not shown:
        return None
    if len(shown) == 1:
        loss = [_by_epoch(shown[0], "training", lambda one: one.get("loss")), _validation(shown[0], "validation")]
        count = max(len(one.get("positions") or ()) for one in shown[0].epochs)
        right = [_by_epoch(shown[0], f"token {place + 1}", partial(_right, place=place)) for place in range(count)]
        title = "Right guesses"
    else:
        loss = [_validation(build, build.name) for build in shown]
        right = [_by_epoch(build, build.name, partial(_right, place=0)) for build in shown]
        title = "Right guesses of the first token"
    simulated = [_by_epoch(build, build.name or "simulated", lambda one: length(one.get("simulated") or {}))
                 for build in shown]  # fmt: skip
    untrained = shown[0].epochs[0].get("validation_loss") if len(shown) == 1 else None
    words = {"loss": "Loss" if len(shown) == 1 else "Validation loss", "right": title}
    figures = [
        lines("loss", Chart(title=words["loss"], x="epoch", y="loss", series=loss),
               note="" if untrained is None else f"The untrained draft's is {untrained:.2f} on the validation rows."),
        lines("right", Chart(title=words["right"], x="epoch", y="share of guesses", series=right, zero=True),
               note="On validation rows, each guess made after the verifier's own tokens."),
        lines("simulated", Chart(title="Acceptance length, simulated", x="epoch", y="tokens per draft + 1",
                                  series=simulated),
               note="Greedy speculation replayed over the validation rows."),
    ]  # fmt: skip
    kept = f"Epoch {shown[0].kept['epoch']} is the one that was kept." if len(shown) == 1 and shown[0].kept else ""
    return Section(id="training", title="Training", text=kept, figures=[one for one in figures if one])


def evaluation(builds: Sequence[Built]) -> Section | None:
    """Return what was accepted of drafts on held-out prompts, and whether the output stayed the verifier's."""
    shown = [one for one in builds if one.measured("evaluation")]
    if not shown:
        return None
    drawn, figures = _charted(shown), list[Figure | None]()
    if len(shown) == 1:
        found = shown[0].measured("evaluation")
        series = [
            Series(name=words, points=list(enumerate(_shares(found.get(key))))) for key, words in DRAFTERS.items()
        ]
        figures.append(bars("accepted", _by_position(series)))
    else:
        series = [Series(name=one.name, points=list(enumerate(_served(one))))
                  for one in drawn]  # fmt: skip
        figures.append(lines("accepted", _by_position(series)))
        names = [one.name for one in drawn]
        lengths = [
            Series(
                name="mean acceptance length",
                points=[(index, one.acceptance or 1.0) for index, one in enumerate(drawn)],
            )
        ]
        figures.append(bars("lengths", Chart(title="Mean acceptance length", x="build", y="tokens per draft + 1",
                                              names=names, series=lengths, digits=3, zero=True)))  # fmt: skip
    return Section(
        id="evaluation",
        title="Evaluation",
        text="On held-out prompts, greedily. The mean acceptance length is the accepted tokens per draft, and the one"
        " that the verifier adds. The replay walks over the same answers outside the engine, and must agree.",
        figures=[one for one in figures if one],
        tables=[_counts(shown[0]), _lossless(shown[0])] if len(shown) == 1 else [_each(shown)],
    )


def _by_position(series: Sequence[Series]) -> Chart:
    longest = max((len(one.points) for one in series), default=0)
    return Chart(title="Accepted by position", x="token of the draft", y="share of drafts",
                 names=[str(place + 1) for place in range(longest)], series=series, zero=True)  # fmt: skip


def _counts(build: Built) -> Table:
    """Return what was counted of the one build, with the engine and without, and of the untrained draft."""
    found = build.measured("evaluation")
    rows = [
        [f"{words} ({found['runtime']})" if key == "served" and "runtime" in found else words,
         f"{counts.get('drafts', 0):,}", f"{counts.get('accepted', 0):,}", number(length(counts)),
         *(f"{share:.3f}" for share in _shares(counts))]
        for key, words in DRAFTERS.items()
        if (counts := found.get(key))
    ]  # fmt: skip
    wide = max(map(len, rows), default=0)
    head = ["draft", "drafts", "accepted", "mean length", *(f"token {place + 1}" for place in range(wide - 4))]
    return Table(head=head, rows=[[*row, *["-"] * (wide - len(row))] for row in rows])


def _lossless(build: Built) -> Table:
    rows = [[dtype, identical(same)] for dtype, same in sorted(greedy(build.measured("evaluation")).items())]
    return Table(title="Greedy output with and without the draft", rows=rows, head=["computed in", "identical prompts"])


def _each(builds: Sequence[Built]) -> Table:
    """Return what was counted of several builds, a row each."""
    rows: list[list[str]] = []
    for one in builds:
        found = one.measured("evaluation")
        counts = [found.get(key) or {} for key in DRAFTERS]
        same = exact(found)
        rows.append([one.name, str(found.get("runtime", "-")), f"{counts[0].get('drafts', 0):,}",
                     f"{counts[0].get('accepted', 0):,}", *(number(length(one)) for one in counts),
                     identical(same) if same else "-"])  # fmt: skip
    head = ["build", "run by", "drafts", "accepted", "mean length", "replayed", "untrained", "identical in fp32"]
    return Table(head=head, rows=rows, words=(0, 1))


def identical(same: Mapping[str, Any]) -> str:
    """Return how many prompts had the same output with and without the draft."""
    return f"{same['identical']} of {same['prompts']}"


def made(builds: Sequence[Built]) -> Section:
    """Return the graph of the artifacts, and what each of them took."""
    every = unique(builds)
    store, used = builds[0].store, {digest for item in every.values() for digest in item.inputs.values()}
    ends = [item for item in every.values() if item.digest not in used] or list(every.values())
    lineage = trace(store, ends, [item.key for item in every.values()])
    rows: list[list[str]] = []
    for item in every.values():
        record = store.record(item.key)
        rate = record.get("tokens_per_second")
        rows.append([item.stage, item.digest[:SHORT], date(str(record["started"])) if "started" in record else "-",
                     minutes(record["seconds"]) if "seconds" in record else "-",
                     f"{rate:,.0f}" if isinstance(rate, int | float) else "-", human(item.size)])  # fmt: skip
    table = Table(head=["stage", "digest", "started", "took", "tokens/s", "size"], rows=rows, words=(0, 1, 2))
    drawing = Markup(svg(lineage))  # noqa: S704 - ours
    text = "Each box is an artifact, named by the hash of its content; an arrow leads to what was made of it."
    if len(builds) == 1:
        return Section(id="plan", title="How it was made", text=text, drawing=drawing, tables=[table])
    folds = [Fold(title="The graph", drawing=drawing), Fold(title=f"{len(rows)} artifacts", table=table)]
    return Section(id="plan", title="How they were made", folds=folds,
                   text=f"What several builds share was made once. {text}")  # fmt: skip


def values_of(values: Mapping[str, Any], origins: Mapping[str, str], *, many: bool) -> Section | None:
    """Return resolved values by section of the language, with where each is from if that is known."""
    groups: dict[str, list[list[str]]] = {}
    for path, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        groups.setdefault(path.partition(".")[0], []).append(
            [path, text, *([origins.get(path, "")] if origins else [])]
        )
    alone = [rows[0] for rows in groups.values() if len(rows) == 1]
    parts = [("of the spec itself", alone)] * bool(alone) + [item for item in groups.items() if len(item[1]) > 1]
    head = ["field", "value", *(["from"] if origins else [])]
    folds = [Fold(title=f"{name}, {len(rows)} value{'s' * (len(rows) != 1)}",
                  table=Table(head=head, rows=rows, words=range(len(head)))) for name, rows in parts]  # fmt: skip
    text = "All values" + (" that the builds share" * many) + (", and where each is from." if origins else ".")
    return Section(id="values", title="Values", text=text, folds=folds) if folds else None


def lock_of(text: str | None) -> Section | None:
    """Return the lock as it stands in its file."""
    if text is None:
        return None
    return Section(id="lock", title="Lock", text="All that a rebuild takes from outside, pinned.",
                   folds=[Fold(title=f"{len(text.splitlines())} lines of JSON", text=text)])  # fmt: skip


def _by_epoch(build: Built, name: str, value: Callable[[Mapping[str, Any]], Any]) -> Series:
    points = [(one["epoch"], value(one)) for one in build.epochs]
    return Series(name=name, points=[(x, float(y)) for x, y in points if y is not None])


def _validation(build: Built, name: str) -> Series:
    """Return the losses on the validation rows but for the untrained draft's, which would flatten all others."""
    found = _by_epoch(build, name, lambda one: one.get("validation_loss"))
    return Series(name=name, points=[(x, y) for x, y in found.points if x])


def _right(epoch: Mapping[str, Any], place: int) -> float | None:
    """Return the share of a position's guesses that were right."""
    positions = epoch.get("positions") or ()
    if place >= len(positions) or not positions[place].get("counted"):
        return None
    return positions[place]["right"] / positions[place]["counted"]


def _shares(counts: Mapping[str, Any] | None) -> list[float]:
    """Return the share of drafts whose token was accepted, by position."""
    drafts = (counts or {}).get("drafts") or 0
    return [count / drafts for count in (counts or {}).get("accepted_per_position") or [] if drafts]


def length(counts: Mapping[str, Any]) -> float | None:
    """Return a mean acceptance length, reckoned from the counts where it is not said."""
    said, drafts = counts.get("mean_acceptance_length"), counts.get("drafts") or 0
    return said if said is not None or not drafts else 1 + counts["accepted"] / drafts


def _charted(builds: Sequence[Built]) -> list[Built]:
    """Return the builds that curves are drawn of: as many as can be told apart, those of the longest acceptance."""
    best = sorted(builds, key=lambda one: -(one.acceptance or 0.0))[: charts.STYLES]
    return [one for one in builds if one in best]


def unique(builds: Sequence[Built]) -> dict[str, Manifest]:
    """Return all artifacts by digest, those that several builds share once."""
    return {item.digest: item for one in builds for item in one.stages.values()}


def date(started: str) -> str:
    """Return a record's date as a person reads it."""
    try:
        return datetime.fromisoformat(started).strftime("%-d %b %Y, %H:%M UTC")
    except ValueError:
        return printable(started, 20)
