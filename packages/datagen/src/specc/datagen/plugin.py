"""What specc tells every vLLM of its environment (vLLM's entry points `vllm.general_plugins`): how LLaVA runs on a CPU.

vLLM's own class cannot be imported without torchvision, of which there is no build beside a CPU's torch on PyPI. Which
class runs must not depend on what is installed, since it decides bits: so it is this one on a CPU, always.
"""

from __future__ import annotations

from typing import Final

ARCHITECTURE: Final = "LlavaForConditionalGeneration"
CLASS: Final = "specc.datagen.llava:Llava"


def register() -> None:
    """Let vLLM run LLaVA by `CLASS`, if this is a CPU; nothing is imported before a LLaVA is run."""
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        ModelRegistry.register_model(ARCHITECTURE, CLASS)
