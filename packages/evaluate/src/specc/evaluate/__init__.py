"""What a speculator is worth: acceptance, losslessness and speed in vLLM, and the same acceptance replayed."""

from specc.evaluate.lossless import Difference, first_difference, ulp
from specc.evaluate.prompts import Prompt, read_prompts, render

__all__ = ["Difference", "Prompt", "first_difference", "read_prompts", "render", "ulp"]
