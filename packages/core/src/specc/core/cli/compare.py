"""The builds of a matrix side by side: what each of them measured, sorted by acceptance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click

from specc.core.cli.decisions import decided
from specc.core.cli.options import MEASURED, columns, human, minutes, number, print_json
from specc.core.compiler import Compiled
from specc.core.errors import Exit
from specc.core.language.matrix import parts_of
from specc.core.plan import Decision, read_json

State = Literal["current", "stale", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A build and what is known of it; a number that was not measured is None.

    `state` is `current` if all its artifacts are there, `missing` if none was ever built that is its alone.
    `acceptance` is the mean acceptance length on the held-out prompts, `positions` the share of drafts that were
    accepted at each position. `loss` is that of the epoch which was kept, on the validation rows. `seconds` and
    `tokens_per_second` are those of training, `size` the bytes of the checkpoint.
    """

    build: str
    state: State
    checkpoint: str | None
    acceptance: float | None
    positions: tuple[float, ...]
    loss: float | None
    seconds: float | None
    tokens_per_second: float | None
    size: int | None


def print_compared(chosen: Sequence[Compiled], *, json: bool) -> int:
    """Print a spec's builds side by side."""
    found = compared(zip(chosen, decided(chosen), strict=True))
    if json:
        name = str(chosen[0].lock.locked.values["name"])
        print_json({"name": name, "builds": [asdict(one) for one in found]})
    else:
        for line in table(found):
            click.echo(line)
    return Exit.OK


def compared(builds: Iterable[tuple[Compiled, Sequence[Decision]]]) -> list[Compared]:
    """Return builds with what their artifacts in the store say, the longest acceptance first."""
    found = [_compared(compiled, decisions) for compiled, decisions in builds]
    return sorted(found, key=lambda one: (one.acceptance is None, -(one.acceptance or 0.0)))


def _compared(compiled: Compiled, decisions: Sequence[Decision]) -> Compared:
    store = compiled.store
    there = {decision.stage.name: decision for decision in decisions if decision.digest}
    digests = {name: decision.digest or "" for name, decision in there.items()}
    measured = {stage: read_json(store, digests[stage], file) for stage, file in MEASURED.items() if stage in digests}
    served: Mapping[str, Any] = measured.get("evaluation", {}).get("served") or {}
    metrics = measured.get("draft", {})
    kept = [epoch for epoch in metrics.get("epochs") or () if epoch.get("epoch") == metrics.get("best_epoch")]
    drafts, key = served.get("drafts") or 0, there["draft"].key if "draft" in there else None
    record = store.record(key) if key else {}
    whole = len(there) == len(decisions)
    known = whole or any(decision.last is not None for decision in decisions if not decision.digest)
    return Compared(
        build=compiled.build,
        state="current" if whole else "stale" if known else "missing",
        checkpoint=digests.get("checkpoint"),
        acceptance=served.get("mean_acceptance_length"),
        positions=tuple(count / drafts for count in served.get("accepted_per_position") or () if drafts),
        loss=kept[0].get("validation_loss") if kept else None,
        seconds=record.get("seconds"),
        tokens_per_second=record.get("tokens_per_second"),
        size=store.manifest(digests["checkpoint"]).size if "checkpoint" in digests else None,
    )


def table(found: Sequence[Compared]) -> list[str]:
    """Return builds as the lines of a table: a column for each field of the matrix, under the shortest name it has."""
    fields = list(dict.fromkeys(part.partition("=")[0] for one in found for part in parts_of(one.build)))
    heads = [_short(field, fields) for field in fields]
    rows = [[*heads, "state", "acceptance", "by position", "loss", "trained in", "tokens/s", "size", "checkpoint"]]
    for one in found:
        values = {field: text for field, _, text in (part.partition("=") for part in parts_of(one.build))}
        rows.append(
            [
                *(values.get(field, "-") for field in fields),
                one.state,
                number(one.acceptance),
                " ".join(f"{share:.2f}" for share in one.positions) or "-",
                number(one.loss, 4),
                "-" if one.seconds is None else minutes(one.seconds),
                number(one.tokens_per_second, 0),
                "-" if one.size is None else human(one.size),
                (one.checkpoint or "-")[:12],
            ]
        )
    return columns(rows, 40)


def _short(field: str, fields: Sequence[str]) -> str:
    last = field.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in fields) == 1 else field
