"""The compiler without an engine: no module of it brings one in, whichever is imported."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """\
import importlib, pkgutil, sys
import specc.core
every = [item.name for item in pkgutil.walk_packages(specc.core.__path__, "specc.core.")]
for name in every:
    importlib.import_module(name)
engines = ("torch", "numpy", "transformers", "vllm", "deepspeed", "safetensors", "tokenizers", "gguf")
print(len(every), *[name for name in engines if name in sys.modules])
"""


def test_no_module_of_the_compiler_brings_an_engine() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    count, *engines = done.stdout.split()
    assert int(count) > 50
    assert engines == []
