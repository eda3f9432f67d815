"""Fixtures of the compiler's tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from specc.core.files import remove_tree


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A temporary folder in memory where there is one: a store syncs each file, and a busy disk takes its time."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - mkdtemp makes it private
    folder = Path(tempfile.mkdtemp(prefix="specc-test-", dir=memory))
    yield folder
    remove_tree(folder)
