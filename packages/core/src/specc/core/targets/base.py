"""A target as a row: its files and the settings that a site must or may give."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from specc.core.errors import SpeccError
from specc.core.targets.project import Project


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value that no spec has, since it is about a site: `pattern` is what it must match, `expected` that in words.

    `default` is None where nothing stands for a setting that is not given, and a `required` one has to be given.
    """

    name: str
    about: str
    pattern: str
    expected: str
    default: str | None = None
    required: bool = False

    def takes(self, value: str) -> bool:
        """Tell whether a value is one that the setting can have."""
        return re.fullmatch(self.pattern, value) is not None


def nothing_refused(_: Project) -> list[SpeccError]:
    """Return that a target takes every project."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of place that a spec can be built at.

    `files` maps the paths that are written to templates in the target's own folder, `per_stage` the same for files
    that there is one of for each stage (`{name}` in the path). `start` is the file that a user runs. `refuse` returns
    what is in a project that the place cannot take.
    """

    name: str
    about: str
    start: str
    files: Mapping[str, str]
    per_stage: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: tuple[Setting, ...] = ()
    refuse: Callable[[Project], list[SpeccError]] = nothing_refused
