"""The scripts: good shell, and what they call, with which words, in which order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from compiling import BASH, DATA_FILE, RECORD, SPEC_FILE, Compiler, calls
from projects import BUILT
from specc.core.targets import TARGETS

Program = Callable[..., dict[str, Any]]
STAGES = [*BUILT, "hidden_states", "draft", "checkpoint"]
"""The stages of the project, in the order of the plan."""


def scripts(folder: Path) -> list[Path]:
    """Return the scripts of a compiled folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".sh", ".sbatch"))


def run(script: Path, environment: dict[str, Any], *arguments: str, expect: int = 0) -> str:
    """Run a script from another folder, as a user may; return what it says."""
    done = subprocess.run([BASH, str(script), *arguments], cwd="/", env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == expect, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def building(stage: str, spec: str = SPEC_FILE) -> list[str]:
    """Return the words that build a stage of the project."""
    return ["specc", "build", "--frozen", "--offline", "--stage", stage, f"./{spec}"]


@pytest.mark.parametrize("target", TARGETS)
def test_scripts_are_good_shell(hostile: Compiler, target: str) -> None:
    settings = ["--set", "setup=it's $(here)/activate"] if target in ("shell", "slurm") else []
    folder = hostile(target, *settings, "--class", "cuda")
    found = scripts(folder)
    assert folder / TARGETS[target].start in found
    for script in found:
        assert os.access(script, os.X_OK)
        subprocess.run([BASH, "-n", script], check=True)
    # SC2016 says that nothing is expanded in single quotes, which is what they are for here.
    check = ["--severity", "style", "--exclude", "SC2016", *map(str, found)]
    done = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", *check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# shell


def test_the_shell_script_builds_every_stage_in_order_and_runs_nothing_else(
    hostile: Compiler, program: Program, tmp_path: Path
) -> None:
    folder = hostile("shell", "--with-files")
    environment = program(specc=RECORD + 'pwd >> "$CALLS.where"')
    run(folder / "build.sh", environment)
    assert calls(environment) == [building(stage) for stage in STAGES]
    assert set((tmp_path / "calls.where").read_text().split("\n")[:-1]) == {str(folder / "project")}
    assert not list(hostile.project.folder.rglob("ran")) + list(Path("/").glob("ran"))


def test_a_stage_that_fails_is_the_last(plain: Compiler, program: Program) -> None:
    environment = program(specc=RECORD + '[ "$5" != tokens ] || exit 3')
    run(plain("shell", "--with-files") / "build.sh", environment, expect=3)
    assert [call[5] for call in calls(environment)] == ["verifier", "conversations", "tokens"]


@pytest.mark.parametrize("target", ["shell", "slurm", "ray"])
@pytest.mark.parametrize("harm", ["missing", "another"])
def test_a_file_that_is_not_the_locks_stops_it_before_anything_starts(
    hostile: Compiler, program: Program, target: str, harm: str
) -> None:
    folder = hostile(target, "--with-files")
    data = folder / "project" / DATA_FILE
    data.unlink() if harm == "missing" else data.write_text("other rows\n")
    environment = program(specc=RECORD, sbatch=RECORD, ray=RECORD)
    said = run(folder / TARGETS[target].start, environment, expect=1)
    assert "error: a file that the spec names is not in `project`, or is another; `files.sha256` lists them\n" in said
    assert calls(environment) == []


def test_a_setup_file_is_read_first_and_may_leave_names_unset(plain: Compiler, program: Program) -> None:
    setup = plain.project.folder / "it's set up"
    setup.write_text('export GREETING="$UNSET hello"\n')
    folder = plain("shell", "--with-files", "--set", f"setup={setup}")
    environment = program(specc='[ "$GREETING" = " hello" ]')
    run(folder / "build.sh", environment)
    setup.write_text("false\n")
    run(folder / "build.sh", environment, expect=1)


# slurm

SBATCH = RECORD + 'echo "$(wc -l < "$CALLS");cluster"\n'


def test_slurm_jobs_wait_for_those_that_they_need(hostile: Compiler, program: Program) -> None:
    folder = hostile("slurm", "--with-files")
    environment = program(sbatch=SBATCH)
    said = run(folder / "submit.sh", environment, "--reservation=a b")
    found = calls(environment)
    number = {stage: index for index, stage in enumerate(STAGES, start=1)}
    assert [call[-1] for call in found] == [
        f"jobs/{number[stage]:02}-{stage.replace('_', '-')}.sbatch" for stage in STAGES
    ]
    assert all(call[:2] == ["sbatch", "--parsable"] and call[-2] == "--reservation=a b" for call in found)
    waits = {stage: call[2:-2] for stage, call in zip(STAGES, found, strict=True)}
    ids = {stage: said.split(f"{stage} is job ")[1].split("\n")[0] for stage in STAGES}
    assert all(job.isdecimal() for job in ids.values())
    assert waits["verifier"] == []
    assert waits["conversations"] == []
    after = ":".join(ids[need] for need in ("tokens", "hidden_states", "verifier", "vocabulary"))
    assert waits["draft"] == [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]


def test_a_job_that_slurm_refuses_ends_the_submission(plain: Compiler, program: Program) -> None:
    environment = program(sbatch=RECORD + 'case "$*" in *tokens*) exit 7 ;; esac; echo 1')
    run(plain("slurm", "--with-files") / "submit.sh", environment, expect=7)
    assert len(calls(environment)) == 3


def directives(script: Path) -> dict[str, str]:
    """Return the options that `sbatch` reads: those before the first command."""
    head = script.read_text().split("\nset ")[0]
    lines = [line.removeprefix("#SBATCH --") for line in head.split("\n") if line.startswith("#SBATCH --")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_stages_that_run_a_model_have_other_resources_than_the_rest(plain: Compiler) -> None:
    spec = plain.project.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + "runtime: {threads: 3, train: {ranks: 2}}\n")
    plain.project.run("lock", "tiny.yaml")
    sites = [
        "partition=gpu,gpu-long",
        "small_partition=cpu",
        "time=1-00:00:00",
        "memory=64G",
        "account=lab",
        "gpu=gpu:h100",
    ]
    folder = plain("slurm", "--class", "cuda", *(word for site in sites for word in ("--set", site)))
    every = {path.name: directives(path) for path in scripts(folder / "jobs")}
    draft, hidden, tokens = every["06-draft.sbatch"], every["05-hidden-states.sbatch"], every["03-tokens.sbatch"]
    assert draft["cpus-per-task"] == "6"
    assert draft["gres"] == "gpu:h100:2"
    assert hidden["cpus-per-task"] == "3"
    assert hidden["gres"] == "gpu:h100:1"
    assert tokens["cpus-per-task"] == "1"
    assert not {"gres", "mem"} & tokens.keys()
    assert [row["partition"] for row in (draft, hidden, tokens)] == ["gpu,gpu-long", "gpu,gpu-long", "cpu"]
    assert draft["mem"] == "64G"
    for row in every.values():
        assert row["time"] == "1-00:00:00"
        assert row["account"] == "lab"
        assert row["signal"] == "B:USR1@300"
        assert "requeue" in row
        assert "qos" not in row
    folder = plain("slurm", out="cpu")
    assert not any("gres" in directives(path) for path in scripts(folder / "jobs"))


STUBBORN = """\
trap 'sleep 0.3; echo stopped >> "$CALLS.log"; exit 143' TERM
echo started >> "$CALLS.log"
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("sent", "restarts", "code"), [(signal.SIGUSR1, "0", 0), (signal.SIGUSR1, "20", 143), (signal.SIGTERM, "0", 143)]
)
def test_a_job_near_its_time_limit_stops_its_stage_and_is_queued_again_and_a_cancelled_one_is_not(  # noqa: PLR0917
    plain: Compiler, program: Program, tmp_path: Path, sent: signal.Signals, restarts: str, code: int
) -> None:
    folder = plain("slurm")
    environment = program(specc=STUBBORN, scontrol=RECORD)
    log = tmp_path / "calls.log"
    more = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": restarts}
    job = subprocess.Popen([BASH, "jobs/06-draft.sbatch"], cwd=folder, env={**environment, **more})
    while not log.exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(sent)
    assert job.wait(timeout=20) == code
    assert log.read_text() == "started\nstopped\n", "the job waits for its stage to stop in good order"
    assert calls(environment) == ([] if code else [["scontrol", "requeue", "77"]])


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_job_ends_as_its_stage_does(plain: Compiler, program: Program, code: int) -> None:
    environment = program(specc=f"{RECORD}exit {code}", scontrol=RECORD)
    folder = plain("slurm")
    done = subprocess.run([BASH, "jobs/03-tokens.sbatch"], cwd=folder, env=environment, check=False)
    assert done.returncode == code
    assert calls(environment) == [building("tokens", "tiny.yaml")]


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm here")
def test_slurm_itself_takes_every_batch_script(hostile: Compiler) -> None:
    folder = hostile("slurm", "--set", "time=01:00:00")
    for script in scripts(folder / "jobs"):
        command = ["sbatch", "--test-only", script]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# ray


def test_ray_runs_the_stages_one_after_another_and_the_spec_is_in_no_argument(
    hostile: Compiler, program: Program
) -> None:
    folder = hostile("ray", "--with-files", "--class", "cuda")
    environment = program(ray=RECORD, specc=RECORD)
    run(folder / "submit.sh", environment, "--address", "http://head node:8265")
    found = calls(environment)
    assert [call[-1] for call in found] == STAGES
    for call in found:
        assert call[:7] == [
            "ray",
            "job",
            "submit",
            "--runtime-env",
            "runtime_env.yaml",
            "--address",
            "http://head node:8265",
        ]
        options, entry = call[7 : call.index("--")], call[call.index("--") + 1 :]
        assert options[0::2] == ["--entrypoint-num-cpus", "--entrypoint-num-gpus"]
        assert options[3] == ("1" if call[-1] in ("hidden_states", "draft") else "0")
        assert entry[:2] == ["bash", "stage.sh"]
        # Ray joins these words for a shell, with the quotes of another system: none may need any.
        assert all(re.fullmatch(r"[a-z_.-]+", word) for word in entry)
    Path(environment["CALLS"]).unlink()
    done = subprocess.run(found[2][found[2].index("--") + 1 :], cwd=folder, env=environment, check=False)
    assert done.returncode == 0
    assert calls(environment) == [building("tokens")]


def test_devices_of_one_machine_are_no_clusters(plain: Compiler) -> None:
    spec = plain.project.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + "runtime: {train: {devices: [0]}}\n")
    plain.project.run("lock", "tiny.yaml")
    out = plain.project.folder / "out"
    _, said = plain.project.run("compile", "--target", "slurm", "--out", str(out), "tiny.yaml", expect=1)
    assert "`runtime.train.devices` are numbers on one machine" in said
    assert not out.exists()


def test_ray_gets_an_actor_for_each_worker(plain: Compiler, program: Program) -> None:
    spec = plain.project.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + "runtime: {datagen: {workers: 3}, threads: 2}\n")
    plain.project.run("lock", "tiny.yaml")
    folder = plain("ray", "--with-files")
    environment = program(ray=RECORD)
    run(folder / "submit.sh", environment)
    entries = {call[-1]: call[call.index("--") + 1 :] for call in calls(environment)}
    assert entries["hidden_states"][:5] == ["python", "workers.py", "3", "2", "0"]
    assert entries["tokens"][:5] == ["python", "workers.py", "3", "1", "0"]
    assert entries["draft"][:2] == ["bash", "stage.sh"]
    compile((folder / "workers.py").read_text(), "workers.py", "exec")
    assert yaml.safe_load((folder / "alone.yaml").read_text()) == {"runtime": {"datagen": {"workers": 1}}}


def test_the_runtime_environment_has_rays_fields(hostile: Compiler) -> None:
    # https://docs.ray.io/en/latest/ray-core/handling-dependencies.html#api-reference
    found = yaml.safe_load((hostile("ray") / "runtime_env.yaml").read_text())
    assert found == {"working_dir": ".", "env_vars": {"SPECC_STORE": "/mnt/shared store"}}


# A hub


def test_only_the_stage_that_fetches_may_reach_a_hub(plain: Compiler) -> None:
    lock = plain.project.folder / "tiny.lock.json"
    raw = json.loads(lock.read_text())
    raw["locked"]["values"]["verifier"] |= {"model": "org/name", "revision": "0" * 40}
    raw["locked"]["written"]["verifier.model"] = "org/name"
    lock.write_text(json.dumps(raw))
    spec = plain.project.folder / "tiny.yaml"
    spec.write_text(spec.read_text().replace("./tiny", "org/name"))
    plain.project.run("lock", "tiny.yaml")
    script = (plain("shell") / "build.sh").read_text()
    online = [line for line in script.split("\n") if line.startswith("specc build") and "--offline" not in line]
    assert online == ["specc build --frozen --stage verifier ./tiny.yaml"]
    assert "tiny/" not in (plain.project.folder / "out/files.sha256").read_text()
