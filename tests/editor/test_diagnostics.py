"""What an editor marks in a spec, and where: to the column."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from editor.client import Diagnostic, LanguageServer

ROOT: Final = Path(__file__).resolve().parents[2]
SHIPPED: Final = sorted((ROOT / "specs").glob("*.yaml"))
GOOD: Final = sorted((ROOT / "tests" / "specs" / "good").glob("*.yaml"))
SPEC: Final = """\
version: 1
name: my-speculator
verifier: {model: org/verifier}
draft: {algorithm: eagle3}
data: {sources: [{file: prompts.jsonl}]}
"""
ERROR: Final = 1


def marked(server: LanguageServer, text: str) -> list[tuple[str, str]]:
    """Return the words that are underlined, and what is said of each."""
    found = server.diagnosed(server.type(text).path)
    lines = text.splitlines()
    return [(lines[item.line][item.character : item.end], item.message) for item in found]


def test_the_place_is_exact(server: LanguageServer) -> None:
    path = server.type(SPEC + "train:\n  optimizer: {name: adamw, momentum: 0.9}\n").path
    assert server.diagnosed(path) == [Diagnostic(6, 27, 35, "Property momentum is not allowed.", ERROR)]


@pytest.mark.parametrize(("text", "word", "message"), [
    (SPEC + "train:\n  learing_rate: 1e-4\n", "learing_rate", "Property learing_rate is not allowed."),
    (SPEC + "train: {optimizer: {name: muon, momentun: 0.9}}\n", "momentun", "Property momentun is not allowed."),
    (SPEC + "train:\n  optimizer:\n    momentum: 0.9\n", "momentum", "Property momentum is not allowed."),
    (SPEC.replace("eagle3", "eagle3, block_size: 8"), "block_size", "Property block_size is not allowed."),
    (SPEC.replace("eagle3", "egale3"), "egale3", 'Value is not accepted. Valid values: "eagle3", "peagle", "dflash", '
     '"dflash2", "dspark", "xpress", "mtp".'),
    (SPEC.replace("my-", "my "), "my speculator", "a name of at most 96 letters, digits, `.`, `_` and `-`"),
    (SPEC.replace("{model: org/verifier}", "{}"), "verifier", 'Missing property "model".'),
    (SPEC + "train: {zero: {stage: 7}}\n", "7", "Value is above the maximum of 3."),
    (SPEC + "train: {epochs: three}\n", "three", "Incorrect type. Expected one of integer, null."),
    (SPEC + "trian: {}\n", "trian", "Property trian is not allowed."),
])  # fmt: skip
def test_one_mistake_is_marked_once_and_where_it_is(server: LanguageServer, text: str, word: str, message: str) -> None:
    assert marked(server, text) == [(word, message)]


def test_a_file_that_lacks_sections_is_told_which(server: LanguageServer) -> None:
    messages = [message for _, message in marked(server, "version: 1\n")]
    assert messages == [f'Missing property "{name}".' for name in ("name", "verifier", "draft", "data")]


def test_a_file_that_extends_another_may_lack_them(server: LanguageServer) -> None:
    assert marked(server, "version: 1\nextends: base.yaml\nverifier: {dtype: float32}\n") == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_specs_name_their_schema_and_keep_to_it(bare_server: LanguageServer, path: Path) -> None:
    assert bare_server.diagnose(path) == []
    broken = path.read_text().replace("version: 1", "version: 2")
    (found,) = bare_server.diagnose(path.with_name(f"broken-{path.name}"), broken)
    assert found.message == "Value must be 1."


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_no_error_is_marked_in_a_good_spec(bare_server: LanguageServer, path: Path) -> None:
    modeline = "# yaml-language-server: $schema=../../../schema/speculator.v1.schema.json\n"
    found = bare_server.diagnose(path, modeline + path.read_text())
    assert [item for item in found if item.severity == ERROR] == []
