"""The hooks for pre-commit and the workflow for pull requests, run on this repository's own specs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from projects import copy_sources

BIN = Path(sys.executable).parent
SPECS = ("quickstart", "smollm2-135m-eagle3")
UNLOCKED = "qwen3-8b-eagle3.yaml"
"""The spec that has no lock, for which the hook stops: its hub was never asked."""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def hooks(root: Path) -> list[dict[str, Any]]:
    return yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())


@pytest.fixture(scope="module")
def workflow(root: Path) -> dict[str, Any]:
    """The workflow; YAML 1.1 takes its key `on` for a boolean."""
    raw = yaml.safe_load((root / ".github/workflows/specs.yml").read_text())
    return {"on" if key is True else key: value for key, value in raw.items()}


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    """A git repository with nothing but this repository's locks, their specs and their prompts in its index."""
    folder = tmp_path / "project"
    shutil.copytree(root / "specs", folder / "specs", ignore=shutil.ignore_patterns(".specc", UNLOCKED))
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=folder, check=True, env=environment(tmp_path))  # noqa: S607 - on the path
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which `specc` is this checkout's, and all that is kept is below a folder."""
    kept = {"SPECC_STORE": str(folder / "store"), "PRE_COMMIT_HOME": str(folder / "pre-commit"), "HOME": str(folder)}
    named = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    outside = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return {**outside, **kept, **named, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def run(project: Path, tmp_path: Path) -> Run:
    """Run a command in the project."""

    def run(*command: str, expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False,
                              env={**environment(tmp_path), **variables})  # fmt: skip
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    return run


def spoil(project: Path) -> None:
    """Make one spec's lock stale, and the other spec wrong."""
    stale, wrong = (project / f"specs/{name}.yaml" for name in SPECS)
    stale.write_text(re.sub(r"epochs: \d+", "epochs: 77", stale.read_text()))
    wrong.write_text(wrong.read_text().replace("batch_tokens:", "batch_token:"))


# The hooks


def test_the_manifest_is_one_that_pre_commit_takes(root: Path) -> None:
    done = subprocess.run([BIN / "pre-commit", "validate-manifest", root / ".pre-commit-hooks.yaml"], check=False)
    assert done.returncode == 0


def test_the_hooks_are_of_an_environment_that_pre_commit_makes(hooks: list[dict[str, Any]]) -> None:
    assert [hook["id"] for hook in hooks] == ["specc-check", "specc-lock-check", "specc-schema"]
    assert {hook["language"] for hook in hooks} == {"python"}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("specs/quickstart.yaml", True),
        ("models/specs/mine.yaml", True),
        ("mine.specc.yaml", True),
        ("models/mine.specc.yaml", True),
        ("specs/quickstart.lock.json", False),
        ("tests/specs/bad/unknown-field.yaml", False),
        ("mine.yaml", False),
        ("nospecs/mine.yaml", False),
        (".github/workflows/specs.yml", False),
    ],
)
def test_the_hooks_see_specs_and_nothing_else(hooks: list[dict[str, Any]], path: str, wanted: bool) -> None:
    for hook in hooks[:2]:
        assert bool(re.search(hook["files"], path)) is wanted


def configure(project: Path, hooks: list[dict[str, Any]]) -> None:
    """Write a configuration with the same hooks, and this checkout's `specc` for the environment of their own."""
    local = [{**hook, "language": "system"} for hook in hooks]
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": local}]}))


def test_pre_commit_runs_the_hooks(project: Path, run: Run, hooks: list[dict[str, Any]]) -> None:
    configure(project, hooks)
    said = run("pre-commit", "run", "--all-files", "--verbose").stdout
    assert said.count("Passed") == 2
    assert said.count("(no files to check)Skipped") == 1, "there is no schema in the project"
    for name in SPECS:
        assert f"ok: specs/{name}.yaml" in said
        assert f"specs/{name}.lock.json is up to date" in said
    assert run("pre-commit", "run", "specc-schema", "--files", "schema/none.json").stdout.count("Skipped") == 1
    (project / "schema").mkdir()
    (project / "schema/x.json").write_text("{}\n")
    assert "ok: " in run("pre-commit", "run", "specc-schema", "--verbose", "--files", "schema/x.json").stdout


def test_pre_commit_stops_at_what_is_wrong(root: Path, project: Path, run: Run, hooks: list[dict[str, Any]]) -> None:
    configure(project, hooks)
    spoil(project)
    said = run("pre-commit", "run", "specc-check", "--all-files", expect=1).stdout
    assert f"specs/{SPECS[1]}.yaml" in said
    assert "unknown field `batch_token` in `train`" in said
    said = run("pre-commit", "run", "specc-lock-check", "--files", f"specs/{SPECS[0]}.yaml", expect=1).stdout
    assert f"the lock {SPECS[0]}.lock.json is stale" in said
    shutil.copy(root / "specs" / UNLOCKED, project / "specs")
    said = run("pre-commit", "run", "specc-lock-check", "--files", f"specs/{UNLOCKED}", expect=1).stdout
    assert f"there is no lock `{Path(UNLOCKED).stem}.lock.json`" in said, "and no hub was asked"


@pytest.mark.install
def test_pre_commit_installs_the_hooks_from_this_repository(
    root: Path, project: Path, run: Run, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(root / ".pre-commit-hooks.yaml", source)
    copy_sources(root, source)
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "source"]):
        run("git", "-C", str(source), *command)
    said = run("pre-commit", "try-repo", str(source), "--all-files", "--verbose").stdout
    assert said.count("Passed") == 2
    assert all(f"ok: specs/{name}.yaml" in said for name in SPECS)
    schema = source / "schema/lock.v1.schema.json"
    shutil.copytree(source / "schema", project / "schema")
    schema.write_text(schema.read_text().replace("What was decided", "What is decided"))
    said = run("pre-commit", "try-repo", str(source), "specc-schema", "--files", "schema/lock.v1.schema.json",
               expect=1).stdout  # fmt: skip
    assert "the schema differs from what the models say" in said


# The workflow


def steps(workflow: dict[str, Any], job: str) -> list[dict[str, Any]]:
    """Return those steps of a job that run something of ours."""
    return [step for step in workflow["jobs"][job]["steps"] if "specc" in step.get("run", "")]


def bash(run: Run, step: dict[str, Any], expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does with `shell: bash`."""
    return run("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"], expect=expect, **variables)


def test_the_workflow_is_one_that_github_takes(root: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows",
               root / ".github/workflows/specs.yml"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_fork_s_pull_request_is_given_nothing(root: Path, workflow: dict[str, Any]) -> None:
    assert set(workflow["on"]) == {"pull_request", "push"}
    assert workflow["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert granted == {"sarif": {"contents": "read", "security-events": "write"}}
    assert "github.event.pull_request.head.repo.full_name == github.repository" in workflow["jobs"]["sarif"]["if"]
    assert "secrets." not in (root / ".github/workflows/specs.yml").read_text()
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "what a pull request names is never part of a script"
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_the_checks_pass_on_the_committed_specs_and_annotate_bad_ones(
    root: Path, project: Path, run: Run, workflow: dict[str, Any]
) -> None:
    check, lock = steps(workflow, "check")
    shutil.copy(root / "specs" / UNLOCKED, project / "specs")
    assert bash(run, check).stdout == ""
    bash(run, lock)
    spoil(project)
    assert bash(run, check, expect=1).stdout.startswith(f"::error file=specs/{SPECS[1]}.yaml,line=")
    assert f"the lock {SPECS[0]}.lock.json is stale" in bash(run, lock, expect=1).stderr


def test_the_log_is_written_whether_there_is_something_in_it_or_not(
    project: Path, run: Run, workflow: dict[str, Any]
) -> None:
    (step,) = steps(workflow, "sarif")
    upload = workflow["jobs"]["sarif"]["steps"][-1]["with"]["sarif_file"]
    for count in (0, 1):
        bash(run, step)
        (log,) = json.loads((project / upload).read_text())["runs"]
        assert len(log["results"]) == count
        spoil(project)


def test_the_summary_has_what_a_change_means(project: Path, run: Run, tmp_path: Path, workflow: dict[str, Any]) -> None:
    (step,) = steps(workflow, "diff")
    run("git", "commit", "--quiet", "--message", "before")
    base = run("git", "rev-parse", "HEAD").stdout.strip()
    spec = project / f"specs/{SPECS[0]}.yaml"
    spec.write_text(re.sub(r"epochs: \d+", "epochs: 77", spec.read_text()))
    run("git", "commit", "--quiet", "--all", "--message", "after")
    summary = tmp_path / "summary.md"
    bash(run, step, BASE=base, GITHUB_STEP_SUMMARY=str(summary))
    assert "train.epochs" in summary.read_text()
    assert "77" in summary.read_text()
