"""The shell script, run with the real engines: what `build` comes to, it comes to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compiling import BASH
from projects import Project
from small import write_prompts

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3, vocabulary: 128, hidden_state_layers: [1, 3, 4]}
data:
  sources: [{file: prompts.jsonl}]
  responses: {from: verifier, max_tokens: 8}
  shard_rows: 8
  sequence_length: 128
train: {epochs: 1, batch_tokens: 512}
runtime: {threads: 2}
"""


def digests(project: Project, spec: str) -> dict[str, str]:
    """Return what a store has for every stage of a spec, or what a build makes for it."""
    return json.loads(project.specc("build", "--json", "--frozen", spec).stdout)["artifacts"]


@pytest.mark.engine
def test_the_shell_script_comes_to_the_digests_of_build(tmp_path: Path, verifier_folder: Path) -> None:
    project = Project(tmp_path, tmp_path / "built")
    shutil.copytree(verifier_folder, tmp_path / "tiny")
    write_prompts(tmp_path / "prompts.jsonl", 16)
    (tmp_path / "tiny.yaml").write_text(SPEC)
    project.specc("lock", "tiny.yaml")
    project.specc("compile", "tiny.yaml", "--target", "shell", "--with-files", "--out", "away")
    built = digests(project, "tiny.yaml")
    assert len(built) == 8

    away = Project(tmp_path / "away/project", tmp_path / "compiled")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [BASH, tmp_path / "away/build.sh"], cwd="/", capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "SPECC_STORE": str(away.store)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "built").glob("*-draft-*")), "each has a store of its own"
    records = sorted(away.store.rglob("*"))
    assert digests(away, "tiny.yaml") == built
    assert len(records) == len(sorted(away.store.rglob("*"))), "there was nothing left to build"
