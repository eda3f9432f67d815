"""Fixtures that many tests share."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

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
