"""A stranger's spec is safe to look at: nothing is started, and nothing is imported that it or its model names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from projects import SPEC, Project, make_project

WATCHED = """\
import json, sys
from specc.core.cli import main
seen = []
started = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith((*started, "socket.")) else None)
code = main(sys.argv[2:])
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
near = [name for name, file in files.items() if file.startswith(sys.argv[1])]
heavy = [name for name in ("torch", "numpy", "transformers", "vllm", "deepspeed") if name in sys.modules]
print(json.dumps({"code": code, "seen": seen, "near": near, "heavy": heavy}), file=sys.stderr)
"""
HOSTILE = "raise SystemExit('imported')\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose folder and verifier are full of code that must not run."""
    found = make_project(tmp_path / "project")
    found.run("lock", "tiny.yaml")
    config = json.loads((found.folder / "tiny/config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (found.folder / "tiny/config.json").write_text(json.dumps(config))
    for name in ("tiny/modeling_evil.py", "sitecustomize.py", "yaml.py", "click.py", "jinja2.py", "conftest.py"):
        (found.folder / name).write_text(HOSTILE)
    (found.folder / "other.yaml").write_text(SPEC.replace("4096", "8192"))
    (found.folder / "above.yaml").write_text("extends: tiny.yaml\nmatrix: {train.seed: [1, 2]}\n")
    site = found.folder / "evil"  # an installed package with a spec in it, which is read and not imported
    (site / "evil").mkdir(parents=True)
    (site / "evil-1.dist-info").mkdir()
    (site / "evil/__init__.py").write_text(HOSTILE)
    (site / "evil/base.yaml").write_text("version: 1\ntrain: {seed: 3}\n")
    (site / "evil-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (site / "evil-1.dist-info/RECORD").write_text("evil/__init__.py,,\nevil/base.yaml,,\n")
    (found.folder / "package.yaml").write_text("extends: package:evil/base.yaml\n" + SPEC)
    found.run("lock", "tiny.yaml")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "tiny.yaml"),
        ("check", "--format", "sarif", "tiny.yaml"),
        ("lock", "--check", "tiny.yaml"),
        ("plan", "tiny.yaml"),
        ("diff", "tiny.yaml", "other.yaml"),
        ("diff", "tiny.lock.json", "other.yaml"),
        ("explain", "tiny.yaml", "draft"),
        ("status", "tiny.yaml"),
        ("check", "above.yaml", "package.yaml"),
        ("plan", "above.yaml"),
        ("plan", "package.yaml"),
        ("diff", "above.yaml", "package.yaml"),
        ("compile", "tiny.yaml", "--target", "shell", "--out", "compiled"),
    ],
    ids=" ".join,
)
def test_nothing_is_started_or_imported(project: Project, arguments: tuple[str, ...]) -> None:
    # `-P`: as for the installed command, the working directory is no place to import from.
    command = [sys.executable, "-P", "-c", WATCHED, str(project.folder), *arguments]
    done = subprocess.run(command, check=False, **project.options({"PYTHONPATH": str(project.folder / "evil")}))
    found = json.loads(done.stderr.splitlines()[-1])
    assert found == {"code": 0, "seen": [], "near": [], "heavy": []}, done.stderr


def test_the_watch_sees_what_it_is_for(project: Project) -> None:
    """The same watch on a command that does start something."""
    command = [sys.executable, "-P", "-c", WATCHED, str(project.folder), "build", "--stage", "verifier", "tiny.yaml"]
    done = subprocess.run(command, check=False, **project.options())
    assert "subprocess.Popen" in json.loads(done.stderr.splitlines()[-1])["seen"]
