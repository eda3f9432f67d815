"""Draft models: built from tensors, trained by their own step, replayed over known rows."""

from specc.train.models.base import Batch, DraftModel, Reading
from specc.train.models.registry import build, check_shapes, initial, load, native, trained
from specc.train.models.walk import WalkCounts, accepted_lengths, greedy_walk
from specc.train.verifier import Frozen, read_verifier

__all__ = [
    "Batch",
    "DraftModel",
    "Frozen",
    "Reading",
    "WalkCounts",
    "accepted_lengths",
    "build",
    "check_shapes",
    "greedy_walk",
    "initial",
    "load",
    "native",
    "read_verifier",
    "trained",
]
