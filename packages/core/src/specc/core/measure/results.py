"""Two evaluations or two benchmarks side by side: what each measured, how they differ, and whether that is noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from specc.core.errors import SpeccError
from specc.core.measure.acceptance import greedy
from specc.core.store import Store

Kind = Literal["evaluation", "benchmark"]
_KEYS: Final[Mapping[Kind, str]] = {"evaluation": "served", "benchmark": "cells"}
"""What tells a file of a kind from others."""
_SPEED: Final = ("tokens_per_second", "plain_tokens_per_second", "speedup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured: the file, and the speeds, which for an artifact are in the record of its run here."""

    label: str
    kind: Kind
    found: Mapping[str, Any]
    speeds: Mapping[str, Any]
    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A number on both sides; None where one has not measured it. `overlap` is None where there are no intervals."""

    where: str
    name: str
    before: float | None
    after: float | None
    overlap: bool | None

    @property
    def difference(self) -> float | None:
        """The second less the first."""
        return None if self.before is None or self.after is None else self.after - self.before


def read_result(target: str) -> Result | None:
    """Return the result that a person names: a JSON file, or the start of an artifact's id; None if it is none."""
    path = Path(target)
    if path.is_file():
        if path.suffix != ".json":
            return None
        try:
            found: Any = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        for kind, key in _KEYS.items():
            if isinstance(found, dict) and key in found:
                whole = dict[str, Any](found)
                return Result(label=target, kind=kind, found=whole, speeds=whole.get("speeds") or {}, stored=False)
        return None
    store = Store.locate(Path.cwd() / "spec.yaml")
    try:
        manifest = store.manifest(store.resolve(target))
    except SpeccError:
        return None  # whatever it is, what compares specs has a word for it
    if manifest.stage not in ("evaluation", "benchmark"):
        return None
    file = store.path(manifest.digest) / f"{manifest.stage}.json"
    try:
        found = dict[str, Any](json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise SpeccError("the measurements cannot be read", where=str(file),
                         hint=f"`specc verify {target}` hashes the artifact again") from error  # fmt: skip
    record = store.record(manifest.key)
    speeds = record.get("benchmark", {}) if manifest.stage == "benchmark" else record
    label = f"{manifest.stage} {manifest.digest[:12]}"
    return Result(label=label, kind=manifest.stage, found=found, speeds=speeds, stored=True)


def side_by_side(before: Result, after: Result) -> list[Measured]:
    """Return every number of two results of one kind, in the order of the first."""
    one, two = (dict(_numbers(result)) for result in (before, after))
    rows: list[Measured] = []
    for where, name in dict.fromkeys([*one, *two]):
        (old, first), (new, second) = (side.get((where, name), (None, None)) for side in (one, two))
        overlap = first[0] <= second[1] and second[0] <= first[1] if first and second else None
        rows.append(Measured(where=where, name=name, before=old, after=new, overlap=overlap))
    return rows


Number = tuple[float | None, Sequence[float] | None]


def _numbers(result: Result) -> Iterator[tuple[tuple[str, str], Number]]:
    """Yield each number by where it was measured and its name, with its interval if it has one."""
    return _of_benchmark(result) if result.kind == "benchmark" else _of_evaluation(result)


def _of_evaluation(result: Result) -> Iterator[tuple[tuple[str, str], Number]]:
    for name in ("served", "untrained", "simulated"):
        counts: Mapping[str, Any] = result.found.get(name) or {}
        yield (name, "mean acceptance length"), (counts.get("mean_acceptance_length"), None)
    for dtype, same in greedy(result.found).items():
        yield (dtype, "identical answers"), (_share(same), None)
    for name, speed in (result.speeds.get("tokens_per_second") or {}).items():
        yield (name, "tokens per second"), (speed, None)
    yield ("speculative", "speed-up"), (result.speeds.get("speed_up"), None)


def _of_benchmark(result: Result) -> Iterator[tuple[tuple[str, str], Number]]:
    rates = {_cell(cell): cell for cell in result.speeds.get("cells", ())}
    for cell in result.found["cells"]:
        where, rate = _cell(cell), rates.get(_cell(cell), {})
        yield (where, "mean acceptance length"), (cell["mean_acceptance_length"], cell["interval"])
        for name, counts in cell["subsets"].items() if len(cell["subsets"]) > 1 else ():
            yield (where, f"of {name}"), (counts["mean_acceptance_length"], counts["interval"])
        if cell["lossless"]:
            yield (where, "identical answers"), (_share(cell["lossless"]), None)
        for name in _SPEED:
            interval = rate.get("interval") if name == "speedup" else None
            yield (where, name.replace("_", " ").replace("speedup", "speed-up")), (rate.get(name), interval)


def _cell(cell: Mapping[str, Any]) -> str:
    return f"temperature {cell['temperature']:g}, {cell['batch_size']} at once, {cell['speculative_tokens']} tokens"


def _share(same: Mapping[str, int]) -> float | None:
    return same["identical"] / same["prompts"] if same.get("prompts") else None
