"""The language server that VS Code and others run on YAML, in this checkout and with its settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from editor.client import LanguageServer

OFFLINE: Final = {"yaml.schemaStore.enable": False, "yaml.kubernetesCRDStore.enable": False}
"""No list of schemas is fetched, as it would be for files that no schema of ours is for."""


@pytest.fixture(scope="session")
def settings(root: Path) -> dict[str, Any]:
    """What a developer's editor takes from this checkout."""
    return json.loads((root / ".vscode" / "settings.json").read_text())


@pytest.fixture(scope="module")
def server(root: Path, settings: dict[str, Any]) -> Iterator[LanguageServer]:
    """The server as it runs for whoever opens this checkout."""
    with LanguageServer(root, {**settings, **OFFLINE}) as running:
        yield running


@pytest.fixture(scope="module")
def bare_server(root: Path) -> Iterator[LanguageServer]:
    """The server without settings of ours: it knows a schema by the modeline alone."""
    with LanguageServer(root, OFFLINE) as running:
        yield running
