"""Every target, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from specc.core.targets.base import Target
from specc.core.targets.kubernetes import KUBERNETES
from specc.core.targets.ray import RAY
from specc.core.targets.shell import SHELL
from specc.core.targets.slurm import SLURM

TARGETS: Final[Mapping[str, Target]] = {row.name: row for row in (SHELL, SLURM, KUBERNETES, RAY)}
