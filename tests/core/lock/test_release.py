"""A lock under another release: copies of the compiler with one thing changed in the language, run as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from projects import write_verifier

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3}
data:
  sources: [{file: prompts.jsonl}]
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 400, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip

LEARNING_RATE = "= 1e-4\n"
LENGTH = "LONGEST_SEQUENCE: Final = 2048\n"
LOSS = '    loss={"kl": 1.0},\n'
OPTIMIZER = "] = AdamW()\n"
SHUFFLE = "    shuffle: bool = True\n"
ROWS = '    """Number of rows to take from the start. Default: all."""\n'
NEW = '    patience: int = 7\n    """A key that only one of two releases has."""\n'


@dataclass(frozen=True)
class Project:
    """A spec in a folder, and the releases that it may be locked with."""

    folder: Path
    release: Callable[..., Path]

    def specc(self, release: Path, *arguments: str, expect: int = 0) -> str:
        """Run a command of a release; return its standard output, or its standard error without `--json`."""
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from specc.core.cli import main; sys.exit(main(sys.argv[1:]))",
             *arguments, "tiny.yaml"],
            cwd=self.folder, capture_output=True, text=True, check=False,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(release / "packages/core/src")},
        )  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout if "--json" in arguments else done.stderr

    def lock(self) -> bytes:
        """Return the lock's bytes."""
        return (self.folder / "tiny.lock.json").read_bytes()

    def value(self, path: str) -> Any:
        """Return one of the lock's values."""
        node = json.loads(self.lock())["locked"]["values"]
        for part in path.split("."):
            node = node[part]
        return node

    def moved(self, release: Path, *arguments: str) -> dict[str, tuple[Any, Any]]:
        """Return what a lock with a release would move; the day may have changed on the way."""
        found = json.loads(self.specc(release, "lock", "--dry-run", "--json", *arguments))["moved"]
        return {item["path"]: (item["lock"], item["spec"]) for item in found if item["path"] != "date"}

    def keeps(self, release: Path) -> None:
        """Assert that a release takes the lock as it is, and writes nothing."""
        before = self.lock()
        self.specc(release, "lock", "--check")
        assert "up to date" in self.specc(release, "lock")
        assert self.lock() == before


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[..., Path]:
    """Copy the compiler with texts of its language or of EAGLE-3 replaced, each of which stands there once."""

    def release(changes: dict[str, str]) -> Path:
        folder = tmp_path_factory.mktemp("release")
        shutil.copytree(root / "packages/core/src/specc", folder / "packages/core/src/specc")
        shutil.copytree(root / "schema", folder / "schema")
        core = folder / "packages/core/src/specc/core"
        for old, new in changes.items():
            places = ("language/models.py", "language/data.py", "algorithms/eagle3.py")
            found = [core / place for place in places if old in (core / place).read_text()]
            assert len(found) == found[0].read_text().count(old) == 1, old
            found[0].write_text(found[0].read_text().replace(old, new))
        return folder

    return release


@pytest.fixture(scope="module")
def today(root: Path) -> Path:
    """This release."""
    return root


@pytest.fixture
def project(tmp_path: Path, release: Callable[..., Path], today: Path) -> Project:
    """A spec that today's release has locked."""
    write_verifier(tmp_path / "tiny", CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    (tmp_path / "tiny.yaml").write_text(SPEC)
    project = Project(tmp_path, release)
    project.specc(today, "lock")
    return project


@pytest.mark.parametrize(
    ("old", "new", "path", "then", "now"),
    [
        (LEARNING_RATE, "= 3e-4\n", "train.optimizer.learning_rate", 1e-4, 3e-4),
        (LENGTH, LENGTH.replace("2048", "4096"), "data.sequence_length", 2048, 4096),
    ],
)
def test_a_default_that_changes_changes_no_locked_build(  # noqa: PLR0917 - a row of the table
    project: Project, today: Path, old: str, new: str, path: str, then: Any, now: Any
) -> None:
    later = project.release({old: new})
    assert project.value(path) == then
    project.keeps(later)
    assert project.specc(later, "plan", "--json") == project.specc(today, "plan", "--json")
    assert project.moved(later, "--upgrade", "verifier", "--upgrade", "data", "--upgrade", "engines") == {}
    assert project.moved(later, "--upgrade", "defaults") == {path: (then, now)}

    # Another value moves, and this one does not.
    (project.folder / "tiny.yaml").write_text(SPEC + "train: {batch_tokens: 4096}\n")
    assert project.moved(later) == {"train.batch_tokens": (8192, 4096)}
    project.specc(later, "lock")
    assert project.value(path) == then

    project.specc(later, "lock", "--upgrade", "defaults")
    assert project.value(path) == now
    (project.folder / "tiny.lock.json").unlink()
    project.specc(later, "lock")
    assert project.value(path) == now, "what a spec without a lock gets"


def test_rules_hold_the_spec_against_the_defaults_of_its_lock(project: Project, today: Path) -> None:
    (project.folder / "tiny.yaml").write_text(SPEC + "train: {batch_tokens: 2048}\n")
    project.specc(today, "lock")
    later = project.release({LENGTH: LENGTH.replace("2048", "4096")})
    project.keeps(later)
    refused = project.specc(later, "lock", "--upgrade", "defaults", expect=1)
    assert "`train.batch_tokens` is 2048, less than the derived sequence length, 4096" in refused


def test_a_default_of_several_keys_is_kept_whole(project: Project) -> None:
    later = project.release({LOSS: '    loss={"ce": 0.5},\n', OPTIMIZER: "] = Muon()\n"})
    project.keeps(later)
    assert project.value("train.loss") == {"kl": 1.0}
    assert project.value("train.optimizer.name") == "adamw"
    assert project.moved(later, "--upgrade", "defaults") == {
        "train.loss.ce": (None, 0.5),
        "train.loss.kl": (1.0, None),
        "train.optimizer.name": ("adamw", "muon"),
        "train.optimizer.momentum": (None, 0.95),
    }


def test_a_key_that_a_release_adds_takes_its_default_and_is_said(project: Project, today: Path) -> None:
    later = project.release({SHUFFLE: SHUFFLE + NEW, LEARNING_RATE: "= 3e-4\n"})
    assert project.moved(later) == {"data.patience": (None, 7)}
    said = "data.patience: nothing in the lock, 7 by default"
    assert said in project.specc(later, "plan"), "it plans, and says that the lock is stale"
    assert said in project.specc(later, "lock", "--check", expect=1)
    for flag in ("--locked", "--frozen"):
        refused = project.specc(later, "build", flag, expect=1)
        assert "data.patience: nothing in the lock, 7" in refused
    project.specc(later, "lock")
    project.keeps(later)
    assert project.value("train.optimizer.learning_rate") == 1e-4

    # And back again: to the older release that key is one that was removed.
    assert project.moved(today) == {"data.patience": (7, None)}
    assert "data.patience: 7 in the lock, nothing now" in project.specc(today, "lock", "--check", expect=1)
    project.specc(today, "lock")
    project.keeps(today)


def test_a_key_that_a_release_adds_to_every_file_is_said_of_each(project: Project) -> None:
    later = project.release({ROWS: ROWS + NEW})
    assert project.moved(later) == {"data.sources.0.patience": (None, 7)}
    assert "data.sources.0.patience" in project.specc(later, "build", "--frozen", expect=1)


def test_a_frozen_build_refuses_a_value_that_its_release_cannot_read(project: Project, today: Path) -> None:
    later = project.release({SHUFFLE: SHUFFLE + NEW})
    lock = project.folder / "tiny.lock.json"
    project.specc(later, "lock")
    raw = json.loads(lock.read_text())
    raw["locked"]["written"]["data.patience"] = 7
    lock.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    refused = project.specc(today, "build", "--frozen", expect=1)
    assert "the lock is of another release: this specc does not take its `data.patience`" in refused
    assert "Traceback" not in refused
