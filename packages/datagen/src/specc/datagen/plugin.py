"""What specc tells every vLLM of its environment (vLLM's entry points `vllm.general_plugins`), on a CPU.

How LLaVA runs: vLLM's own class cannot be imported without torchvision, of which there is no build beside a CPU's torch
on PyPI. Which class runs must not depend on what is installed, since it decides bits: so it is this one, always.

And where classes of models are looked at: vLLM imports itself once more in a process of its own for each, which takes
longer than all the rest of the start of a small one, and only to keep CUDA untouched in the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

ARCHITECTURE: Final = "LlavaForConditionalGeneration"
CLASS: Final = "specc.datagen.llava:Llava"


def register() -> None:
    """Let vLLM run LLaVA by `CLASS`, and look at classes in this process; nothing is imported before it looks."""
    from vllm import ModelRegistry
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        ModelRegistry.register_model(ARCHITECTURE, CLASS)
        models: Any = registry
        models._run_in_subprocess = _here


def _here(look: Callable[[], Any]) -> Any:
    """Return what `look` finds, in place of vLLM's function that asks another process."""
    return look()
