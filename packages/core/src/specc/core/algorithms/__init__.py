"""The algorithms as pure data: each one's part of the language, its derived values and its tensors."""

from specc.core.algorithms.base import (
    Algorithm,
    DraftSection,
    Section,
    TensorSpec,
    TrainingCost,
    attention,
    decoder_config,
    directed,
    learnt,
    vocabulary_of,
)
from specc.core.algorithms.registry import ALGORITHMS, algorithm

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "DraftSection",
    "Section",
    "TensorSpec",
    "TrainingCost",
    "algorithm",
    "attention",
    "decoder_config",
    "directed",
    "learnt",
    "vocabulary_of",
]
