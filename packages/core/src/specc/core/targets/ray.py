"""The target `ray`: a script that submits every stage to a Ray cluster as a job, one after another."""

from __future__ import annotations

from typing import Final

from specc.core.targets.base import Setting, Target

RAY: Final = Target(
    name="ray",
    about="a script that runs every stage with `ray job submit`",
    start="submit.sh",
    files={name: name for name in ("submit.sh", "stage.sh", "runtime_env.yaml", "workers.py", "alone.yaml")},
    settings=(
        Setting(name="store", about="folder of the store, the same on every node", required=True,
                pattern=r"/[^\n\r\0]*", expected="a path from the root on a file system that the nodes share"),
    ),
)  # fmt: skip
