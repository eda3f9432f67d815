"""Draft models: built from tensors, trained by their own step, replayed over known rows."""

from specc.train.models.eagle3 import Eagle3
from specc.train.models.registry import build, check_shapes, load, trained
from specc.train.models.rows import Rows, Targets
from specc.train.models.walk import WalkCounts, accepted_lengths, greedy_walk

__all__ = [
    "Eagle3",
    "Rows",
    "Targets",
    "WalkCounts",
    "accepted_lengths",
    "build",
    "check_shapes",
    "greedy_walk",
    "load",
    "trained",
]
