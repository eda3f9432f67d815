"""What opening this checkout, or a folder that `specc init` wrote into, does to an editor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editor.client import LanguageServer
from specc.core.cli import main

WRONG = "version: 1\nbogus: 1\n"


def knows(server: LanguageServer, file: str) -> bool:
    """Tell whether the server holds a file to the language's schema."""
    messages = [item.message for item in server.diagnosed(server.type(WRONG, file).path)]
    return "Property bogus is not allowed." in messages


def test_the_extension_is_recommended(root: Path) -> None:
    assert json.loads((root / ".vscode" / "extensions.json").read_text()) == {"recommendations": ["redhat.vscode-yaml"]}


def test_the_settings_name_a_schema_that_is_there(root: Path, settings: dict[str, Any]) -> None:
    assert set(settings) == {"yaml.schemas", "yaml.disableDefaultProperties"}
    assert [(root / path).is_file() for path in settings["yaml.schemas"]] == [True]


@pytest.mark.parametrize("file", ["specs/mine.yaml", "mine.specc.yaml", "deep/er/mine.specc.yaml"])
def test_specs_are_held_to_the_schema(server: LanguageServer, file: str) -> None:
    assert knows(server, file)


@pytest.mark.parametrize("file", ["mine.yaml", ".github/workflows/mine.yaml", "specs/prompts/mine.yaml"])
def test_other_files_are_not(server: LanguageServer, file: str) -> None:
    assert not knows(server, file)


def test_what_init_writes_is_known_without_any_setting(bare_server: LanguageServer, tmp_path: Path) -> None:
    spec = tmp_path / "mine.yaml"
    assert main(["init", str(spec)]) == 0
    assert bare_server.diagnose(spec) == []
    text = spec.read_text().replace("epochs: 3", "epoch: 3")
    (found,) = bare_server.diagnose(spec.with_name("other.yaml"), text)
    assert found.message == "Property epoch is not allowed."
    assert text.splitlines()[found.line][found.character : found.end] == "epoch"
