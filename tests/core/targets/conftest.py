"""A locked project, and one with names that a shell, YAML or `sha256sum` could take for something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiling import DATA_FILE, SPEC_FILE, Compiler
from projects import make_project


@pytest.fixture
def plain(quick_path: Path) -> Compiler:
    """A project as people have them."""
    project = make_project(quick_path / "plain")
    project.run("lock", "tiny.yaml")
    return Compiler(project, "tiny.yaml")


@pytest.fixture
def hostile(quick_path: Path) -> Compiler:
    """The same project with a spec and a data file of hostile names."""
    project = make_project(quick_path / "hostile")
    (project.folder / "prompts.jsonl").rename(project.folder / DATA_FILE)
    text = (project.folder / "tiny.yaml").read_text()
    (project.folder / "tiny.yaml").unlink()
    (project.folder / SPEC_FILE).write_text(text.replace("prompts.jsonl", json.dumps(DATA_FILE, ensure_ascii=True)
                                            .replace("\\ud83d\\ude00", "\\U0001f600")))  # fmt: skip
    project.run("lock", SPEC_FILE)
    return Compiler(project, SPEC_FILE)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that puts a script into a folder and returns an environment with it first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**scripts: str) -> dict[str, Any]:
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (folder / name).chmod(0o755)
        return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}

    return put
