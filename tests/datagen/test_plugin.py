"""What specc tells every vLLM of its environment."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine


def test_vllm_looks_at_a_class_of_models_in_its_own_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vllm.model_executor.models import registry
    from vllm.plugins import load_general_plugins

    started: list[Any] = []
    run = subprocess.run

    def watched(command: Any, *rest: Any, **more: Any) -> Any:
        started.append(command)
        return run(command, *rest, **more)

    load_general_plugins()  # as each of its processes does
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))  # where it would keep what it saw
    monkeypatch.setattr(subprocess, "run", watched)
    seen = registry.ModelRegistry.models["GraniteForCausalLM"].inspect_model_cls()
    assert seen.architecture == "GraniteForCausalLM"
    assert seen.is_text_generation_model
    assert list(tmp_path.rglob("*GraniteForCausalLM.json"))
    assert registry._SUBPROCESS_COMMAND not in started
