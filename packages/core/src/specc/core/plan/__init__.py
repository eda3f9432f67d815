"""The plan: the graph of stages, their keys, and what each of them needs."""

from specc.core.plan.plan import (
    Change,
    Decision,
    Plan,
    PlannedStage,
    before,
    decide,
    decide_stage,
    lineage,
    lower,
)
from specc.core.plan.stages import PACKAGES, ROWS, StageRow, stages

__all__ = [
    "PACKAGES",
    "ROWS",
    "Change",
    "Decision",
    "Plan",
    "PlannedStage",
    "StageRow",
    "before",
    "decide",
    "decide_stage",
    "lineage",
    "lower",
    "stages",
]
