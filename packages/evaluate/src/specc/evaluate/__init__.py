"""What a speculator is worth: acceptance, losslessness and speed in vLLM, and the same acceptance replayed."""

from specc.core.measure.prompts import Prompt, read_prompts
from specc.evaluate.lossless import Difference, first_difference, ulp
from specc.evaluate.prompts import render

__all__ = ["Difference", "Prompt", "first_difference", "read_prompts", "render", "ulp"]
