"""A checkpoint that several servers serve: what vLLM found out about its verifier is found once."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving import small_checkpoint
from specc.core.serving.served import Served, served_of
from specc.core.store import Store


@pytest.fixture(scope="session")
def small_served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A small checkpoint of a draft that is right at times, in a store of its own."""
    folder: Path = tmp_path_factory.mktemp("served")
    store = Store(folder / "store")
    return served_of(store, small_checkpoint(folder, store))
