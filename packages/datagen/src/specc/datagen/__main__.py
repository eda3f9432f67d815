"""`python -m specc.datagen JOB.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final

from specc.core.stage import Stage, run


def _lazily(module: str) -> Callable[[Stage], None]:
    """Return the stage of a module, which is imported when the stage runs: reading conversations needs no torch."""

    def stage(stage: Stage) -> None:
        function: Callable[[Stage], None] = getattr(import_module(f"specc.datagen.{module}"), module)
        function(stage)

    return stage


STAGES: Final[Mapping[str, Callable[[Stage], None]]] = {
    name: _lazily(name)
    for name in ("verifier", "conversations", "responses", "tokens", "vocabulary", "hidden_states", "preview")
}
"""Each stage is the function of its own name in the module of its own name; `preview` is no stage of a plan."""

if __name__ == "__main__":
    raise SystemExit(run(STAGES))
