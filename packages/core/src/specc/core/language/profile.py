"""A profile: how and where a spec is built on some machine, in a file of its own; never what is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from specc.core.files import merged
from specc.core.language.check import in_order, rules_of, schema_errors
from specc.core.language.document import Document
from specc.core.references import joined

RUNTIME: Final = "runtime"
PROCESSES: Final = ("E0222", "E0223", "E0247")
"""Rules on processes and their devices, which hold with a profile's too."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile that fits the schema; `store` is relative to the spec's folder."""

    document: Document
    runtime: Mapping[str, Any]

    def over(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return resolved values with the profile's `runtime` over their own, field by field.

        Raises `SpeccErrors` for phases of ranks that do not fit the training, for devices that do not go round, and for
        a verifier that cannot be spread over so many processes.
        """
        from specc.core.language.models import Runtime

        runtime = Runtime.model_validate(merged(values[RUNTIME], self.runtime)).model_dump()
        tree = {**values, RUNTIME: runtime}
        rules = rules_of(self.document, tree)
        wrong = [error for error in rules.check() if error.id in PROCESSES]
        if wrong := [*wrong, *rules.spread(values["verifier"]["config"])]:
            raise in_order(wrong, self.document.name)
        return tree


def read_profile(path: Path, spec: Path) -> Profile:
    """Read the profile that a spec is built with; raises `SpeccErrors` if it has anything but a fitting `runtime`."""
    document = Document.read(path)
    if errors := schema_errors(document, only=RUNTIME):
        raise in_order(errors, document.name)
    runtime = dict(cast("Mapping[str, Any]", document.data[RUNTIME]))
    if (store := runtime.get("store")) is not None:
        runtime["store"] = joined(os.path.relpath(path.parent, spec.parent), store)
    return Profile(document, runtime)
