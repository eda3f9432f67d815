"""Fixtures that many tests share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub import Hub

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
# A shell starts what it puts into the background with the interrupt ignored, and so would everything below.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def verifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small bf16 verifier for the whole session; tests must not write into it."""
    from small import make_verifier

    return make_verifier(tmp_path_factory.mktemp("verifier"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub on this machine, which is asked in place of the real one."""
    from hub import Hub, serving

    with serving(Hub()) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found
