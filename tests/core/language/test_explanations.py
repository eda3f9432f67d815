"""Every error has a page, and the page's example has that error."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from pathlib import Path

import pytest

from specc.core.errors import SpeccError
from specc.core.language import check, explanations
from specc.core.language.explanations import ALL, EXPLANATIONS, examples, page, pages
from specc.core.language.rules import unpinned

PLAIN = sorted(name for name, entry in ALL.items() if not entry.example.startswith("facts/"))


def test_there_are_sixty_checks_and_more_each_raised_and_each_explained(root: Path) -> None:
    sources = (root / "packages/core/src").rglob("*.py")
    texts = [path.read_text() for path in sources if path.name != "explanations.py"]
    raised = {name for text in texts for name in re.findall(r"\bE0\d{3}\b", re.sub(r'"""[\s\S]*?"""', "", text))}
    assert raised == set(ALL)
    assert list(ALL) == sorted(ALL)
    assert len(ALL) >= 60


def test_pages_are_whole() -> None:
    found = pages()
    assert list(found) == list(EXPLANATIONS)
    for name, one in found.items():
        assert all(astuple(one)), name
        for text in (one.sentence, one.why, one.instead):
            assert text.endswith("."), (name, text)
        assert one.message.startswith("error: "), name
        assert "tests/specs" not in one.message, name


@pytest.mark.parametrize("name", PLAIN)
def test_an_example_has_the_error_first(name: str) -> None:
    with pytest.raises(SpeccError) as caught:
        check(examples() / f"{ALL[name].example}.yaml", files=True)
    assert caught.value.errors[0].id == name


def test_a_page_is_the_example_and_its_message_word_for_word(root: Path) -> None:
    found = page("E0203")
    bad = root / "tests/specs/bad/batch-below-sequence"
    assert found.example == bad.with_suffix(".yaml").read_text()
    assert found.message == bad.with_suffix(".txt").read_text().replace("tests/specs/bad/", "")


def test_a_wheel_has_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "__file__", str(tmp_path / "explanations.py"))
    with pytest.raises(SpeccError, match="not where specc was installed"):
        page("E0203")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/batch-below-sequence.yaml").write_text("version: 1\n")
    (tmp_path / "examples/batch-below-sequence.txt").write_text("error: tests/specs/bad/batch-below-sequence.yaml: x\n")
    assert page("E0203").message == "error: batch-below-sequence.yaml: x\n"


def test_under_locked_a_revision_must_be_pinned(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    path = Path("tests/specs/bad/facts/unpinned-revision.yaml")
    (checked,) = check(path)
    section = checked.spec.verifier.model_dump()
    pinned = json.loads(path.with_suffix(".pinned.json").read_text())
    error = unpinned(checked.document, section, pinned)
    assert error is not None
    assert (error.id, error.render() + "\n") == ("E0311", path.with_suffix(".txt").read_text())
    for revision in (pinned["asked_revision"], pinned["revision"]):
        assert unpinned(checked.document, section | {"revision": revision}, pinned) is None
    assert unpinned(checked.document, section | {"model": "./verifier"}, pinned) is None
    assert unpinned(checked.document, section | {"model": "org/other", "revision": "v1.0"}, pinned) is not None
