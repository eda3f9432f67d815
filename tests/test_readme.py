"""The README's words hold: its specs are valid, its links lead somewhere, its commands run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SPECC = Path(sys.executable).parent / "specc"


def _blocks(root: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_the_specs_that_are_shown_pass_check(root: Path, tmp_path: Path) -> None:
    blocks = _blocks(root, "yaml")
    assert len(blocks) >= 2
    shutil.copytree(root / "specs/prompts", tmp_path / "prompts")
    for number, block in enumerate(blocks):
        spec = tmp_path / f"shown{number}.yaml"
        spec.write_text(block)
        done = subprocess.run([SPECC, "check", spec], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_link_leads_to_a_file(root: Path) -> None:
    pages = [root / "README.md", root / "CHANGELOG.md", *(root / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    missing = [(page.name, link) for page, link in links
               if not link.startswith("http") and not (page.parent / link).exists()]  # fmt: skip
    assert len(links) > 20
    assert not missing


def test_every_command_that_is_named_exists(root: Path) -> None:
    text = "".join(page.read_text() for page in (root / "README.md", *(root / "docs").rglob("*.md")))
    shown = subprocess.run([SPECC, "--help"], capture_output=True, text=True, check=True).stdout
    for name in set(re.findall(r"(?:`|\$ )specc (\w+)", text)):
        assert re.search(rf"^  {name}\b", shown, re.MULTILINE), name
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)\b", text)) <= targets


@pytest.mark.full
@pytest.mark.engine
def test_the_commands_run(root: Path) -> None:
    """Every line after `$ ` in a console block, but the test command itself, in this checkout."""
    commands = [line[2:] for block in _blocks(root, "console") for line in block.splitlines() if line.startswith("$ ")]
    assert "make quickstart" in commands
    for command in commands:
        if command in {"make test", "make test-full"}:
            continue
        done = subprocess.run(["/bin/bash", "-c", f"export PATH=.venv/bin:$PATH; {command}"], cwd=root, check=False)
        assert done.returncode == 0, command
