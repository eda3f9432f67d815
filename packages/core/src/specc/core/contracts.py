"""What crosses the boundary between the compiler and a stage's process, and nothing else.

A stage is run as `python -m specc.<package> JOB.json`. It reads one `StageJob`, writes one directory, and
prints events as JSON lines: any number of `progress` and `note`, then one `result` or one `failure`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from specc.core.errors import Exit, SpeccError

CONTRACT: Final = 1
"""Version of this boundary. A stage refuses a job of another version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An artifact that a stage reads: its folder and its digest (hexadecimal sha256).

    `key` is that of the stage that makes it, where it and not the digest stands in the reader's own key. One that is
    made while its reader runs is no artifact, and has no digest: it is empty, and the folder is where they meet.
    """

    path: str
    digest: str
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """Everything a stage may know.

    `params` are the resolved values that the stage's key names, as sub-trees of the resolved spec.
    `facets` are the parts of the numerics class that its key names. `files` maps the logical names of files
    outside the store to their places on this machine; their sha256 stand in `params`.
    `output` is the empty directory to fill. `work` outlives a crash and belongs to this key alone. `units` is
    shared by all keys of the stage and holds finished shards under names of their own keys.
    `context` is for messages, and for what may save work: it never decides a result.
    """

    stage: str
    version: int
    key: str
    params: Mapping[str, Any]
    facets: Mapping[str, Any]
    inputs: Mapping[str, Input]
    files: Mapping[str, str]
    output: str
    work: str
    units: str
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    contract: int = CONTRACT

    @property
    def share(self) -> tuple[int, int]:
        """Which process this is, from 0, of how many that do the stage's work side by side."""
        number, count = self.context.get("share", (0, 1))
        return number, count

    def dump(self) -> str:
        """Return the job as JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def load(cls, path: Path) -> StageJob:
        """Read a job; raises `SpeccError` if it is of another version of this boundary."""
        raw = json.loads(path.read_text())
        if raw.get("contract") != CONTRACT:
            raise SpeccError(
                f"this stage speaks contract {CONTRACT} and the job contract {raw.get('contract')}",
                where=str(path),
                hint="install the same version of specc for the compiler and for its stages",
                code=Exit.STAGE,
            )
        raw["inputs"] = {name: Input(**item) for name, item in raw["inputs"].items()}
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is: `done` of `total` in `unit` (`total` None if unknown), and a word on what it does."""

    done: float
    total: float | None
    unit: str
    text: str = ""
    event: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A sentence that the user should see once, such as a count of rows left out."""

    text: str
    level: Literal["info", "warning"] = "info"
    event: Literal["note"] = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """A finished stage. `record` holds times, rates and hosts: kept beside the artifact, never in it."""

    record: Mapping[str, Any]
    event: Literal["result"] = "result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A stage that could not do its work, in words for the user."""

    message: str
    where: str | None = None
    hint: str | None = None
    code: int = Exit.STAGE
    event: Literal["failure"] = "failure"


Event = Progress | Note | StageResult | Failure
EVENTS: Final[Mapping[str, type[Event]]] = {
    "progress": Progress,
    "note": Note,
    "result": StageResult,
    "failure": Failure,
}


def dump_event(event: Event) -> str:
    """Return an event as one line of JSON."""
    return json.dumps(asdict(event), sort_keys=True, separators=(",", ":"))


def load_event(line: str) -> Event:
    """Read one line; raises `ValueError` for anything that is not an event."""
    raw = json.loads(line)
    if not isinstance(raw, dict) or raw.get("event") not in EVENTS:
        raise ValueError(f"not an event: {line[:80]!r}")
    return EVENTS[raw["event"]](**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the store keeps beside an artifact: how its digest came about. `files` are [path, size, sha256].

    `inputs` are the digests of the artifacts that were read, `keys` the keys of those stages whose key stands in this
    one's, whether there is an artifact of them or not.
    """

    digest: str
    tensors: str | None
    stage: str
    version: int
    key: str
    params: Mapping[str, Any]
    facets: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: tuple[tuple[str, int, str], ...]
    keys: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def streamed(self) -> list[str]:
        """The inputs that were made while the stage ran, of which there is no artifact."""
        return [slot for slot in self.keys if slot not in self.inputs]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self.files)
