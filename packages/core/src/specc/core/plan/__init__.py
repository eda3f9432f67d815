"""The plan: the graph of stages, their keys, what each of them needs and what it will take."""

from specc.core.plan.corpus import read_json, uncounted
from specc.core.plan.estimate import Estimate, Estimator, total
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
    named,
    plan_name,
    runtime_of,
)
from specc.core.plan.stages import PACKAGES, ROWS, StageRow, stages

__all__ = [
    "PACKAGES",
    "ROWS",
    "Change",
    "Decision",
    "Estimate",
    "Estimator",
    "Plan",
    "PlannedStage",
    "StageRow",
    "before",
    "decide",
    "decide_stage",
    "lineage",
    "lower",
    "named",
    "plan_name",
    "read_json",
    "runtime_of",
    "stages",
    "total",
    "uncounted",
]
