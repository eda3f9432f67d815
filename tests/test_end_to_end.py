"""One small spec from prompts to a served draft, by the command line and with the real engines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import pytest

from projects import processes_of
from specc.core.files import remove_tree
from specc.core.plan import ROWS

pytestmark = pytest.mark.engine

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3, vocabulary: 128, hidden_state_layers: [1, 3, 4]}
data:
  sources: [{file: prompts.jsonl}]
  responses: {from: verifier, max_tokens: 16}
  validation: 0.2
  shard_rows: 16
  sequence_length: 256
train:
  epochs: 1
  batch_tokens: 512
  optimizer: {name: adamw, learning_rate: 1e-3}
evaluate:
  prompts: [{file: held-out.jsonl}]
  max_tokens: 16
  lossless_prompts: 2
checks:
  mean_acceptance_length: ">= 1.0"
  lossless: true
runtime: {threads: 2}
"""


NOBODY = 65534


def specc(
    folder: Path, *arguments: str, expect: int = 0, environment: dict[str, str] | None = None, **how: int
) -> subprocess.CompletedProcess[str]:
    """Run `specc` as a user would, in `folder`; `how` is what `subprocess` takes besides (`umask`, `user`, `group`)."""
    command = [str(Path(sys.executable).parent / "specc"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          env=os.environ | (environment or {}), **how)  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def one_rank(lock: dict[str, Any]) -> dict[str, str]:
    """Return what a lock has found with one rank: it keeps what was built with two, too."""
    return next(found for numerics, found in lock["results"].items() if numerics.endswith("-r1"))


def actions(folder: Path) -> dict[str, str]:
    """Return what a plan would do, stage by stage."""
    plan = json.loads(specc(folder, "plan", "tiny.yaml", "--json").stdout)
    return {stage["stage"]: stage["action"] for stage in plan["stages"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, verifier_folder: Path) -> Path:
    """A project that was built once."""
    from small import write_prompts

    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(verifier_folder, folder / "tiny")
    write_prompts(folder / "prompts.jsonl", 24)
    write_prompts(folder / "held-out.jsonl", 4, start=500)
    (folder / "tiny.yaml").write_text(SPEC)
    specc(folder, "check", "tiny.yaml")
    specc(folder, "build", "tiny.yaml")
    return folder


def evaluation(folder: Path) -> dict[str, Any]:
    """Return the evaluation of the project's last build."""
    (path,) = (folder / ".specc/store").glob("*-evaluation-tiny/evaluation.json")
    return json.loads(path.read_text())


def test_vllm_drafts_with_the_checkpoint_and_greedy_output_is_the_verifiers_own(project: Path) -> None:
    found = evaluation(project)
    assert found["runtime"] == "vllm"
    assert found["served"]["drafts"] > 0
    assert found["lossless"]["fp32"] == {"prompts": 2, "identical": 2, "first_differences": []}


def test_built_again_there_is_nothing_to_do(project: Path) -> None:
    lock = (project / "tiny.lock.json").read_bytes()
    started = time.monotonic()
    done = specc(project, "build", "tiny.yaml")
    assert "nothing to do" in done.stderr
    assert time.monotonic() - started < 30, "an engine was started"
    assert (project / "tiny.lock.json").read_bytes() == lock
    assert set(actions(project).values()) == {"hit"}


def test_a_comment_and_the_order_of_keys_rebuild_nothing(project: Path) -> None:
    spec = project / "tiny.yaml"
    name, *rest = SPEC.splitlines()[1:]
    spec.write_text("# a comment\nversion: 1\n" + "\n".join([*rest, name]) + "\n")
    assert set(actions(project).values()) == {"hit"}
    specc(project, "lock", "--check", "tiny.yaml")
    spec.write_text(SPEC)


def test_a_learning_rate_leaves_the_hidden_states_and_the_plan_names_value_and_line(project: Path) -> None:
    spec = project / "tiny.yaml"
    spec.write_text(SPEC.replace("1e-3", "2e-3"))
    found = actions(project)
    assert [stage for stage, action in found.items() if action != "hit"] == ["draft", "checkpoint", "evaluation"]
    plan = specc(project, "plan", "tiny.yaml")
    assert "train.optimizer.learning_rate 1e-3 → 2e-3 (tiny.yaml:14)" in plan.stdout
    stale = specc(project, "lock", "--check", "tiny.yaml", expect=1)
    assert "train.optimizer.learning_rate: 1e-3 in the lock, 2e-3 in the spec (tiny.yaml:14)" in stale.stderr
    specc(project, "build", "--locked", "tiny.yaml", expect=1)
    assert specc(project, "plan", "--detailed-exitcode", "tiny.yaml", expect=5).stdout
    spec.write_text(SPEC)


def test_two_ranks_train_the_draft_and_all_before_it_stays(project: Path) -> None:
    spec = project / "tiny.yaml"
    spec.write_text(SPEC.replace("runtime: {threads: 2}", "runtime: {threads: 2, train: {ranks: 2}}"))
    assert [stage for stage, action in actions(project).items() if action != "hit"] == [
        "draft", "checkpoint", "evaluation",
    ]  # fmt: skip
    done = specc(project, "build", "--stage", "draft", "tiny.yaml")
    assert "draft: sha256:" in done.stderr
    spec.write_text(SPEC)
    specc(project, "build", "tiny.yaml")


def test_an_unmet_check_is_said_with_exit_1_and_nothing_is_built_again(project: Path) -> None:
    spec = project / "tiny.yaml"
    spec.write_text(SPEC.replace(">= 1.0", ">= 3.9"))
    done = specc(project, "build", "tiny.yaml", expect=1)
    assert "built, checks failed" in done.stderr
    assert "nothing to do" in done.stderr
    spec.write_text(SPEC)
    specc(project, "build", "tiny.yaml")


OTHERWISE = {
    "TZ": "Pacific/Kiritimati", "LANG": "tr_TR.UTF-8", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONUTF8": "0",
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "DEBUG", "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41", "DS_ACCELERATOR": "cuda", "TORCH_SHOW_CPP_STACKTRACES": "1",
    "USER": "somebody", "LOGNAME": "somebody",
}  # fmt: skip
"""A caller's environment in which next to nothing is as it was for the first build."""


@pytest.fixture
def someone() -> Iterator[tuple[Path, dict[str, int]]]:
    """A folder of another user, and what makes a process theirs; of this one, where only root could change that."""
    folder, theirs = Path(mkdtemp()), {"user": NOBODY, "group": NOBODY}
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, **theirs)
    except (OSError, subprocess.SubprocessError):  # not root, or a Python that is below root's home
        theirs = dict[str, int]()
    yield folder, theirs
    remove_tree(folder)


def test_a_rebuild_elsewhere_comes_to_the_same_digests(project: Path, someone: tuple[Path, dict[str, int]]) -> None:
    """The promise «bitwise»: another user, folder, home, locale, time zone and umask come to the locked digests."""
    home, user = someone
    other = home / "else where"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns(".specc"))
    if user:
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    environment = {**OTHERWISE, "HOME": str(home)}
    spec = str(other / "tiny.yaml")
    done = specc(Path("/"), "verify", "--rebuild", "--json", spec, environment=environment, umask=0o077, **user)
    found = {item["stage"]: item for item in json.loads(done.stdout)["artifacts"]}
    results = one_rank(json.loads((other / "tiny.lock.json").read_text()))
    assert {stage: item["rebuilt"] for stage, item in found.items()} == results
    assert {item["state"] for item in found.values()} == {"same"}
    assert not list((other / ".specc/store/tmp").iterdir())


def test_a_rebuild_stops_where_it_differs(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns(".specc"))
    lock = other / "tiny.lock.json"
    raw = json.loads(lock.read_text())
    results = one_rank(raw)
    results["conversations"] = "0" * 64
    lock.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    done = specc(other, "verify", "--rebuild", "--json", "tiny.yaml", expect=4)
    found = json.loads(done.stdout)
    states = {item["stage"]: item["state"] for item in found["artifacts"]}
    assert states.pop("verifier") == "same"
    assert states.pop("conversations") == "different"
    assert set(states.values()) == {"skipped"}
    assert list(Path(found["kept"]).glob("*-conversations-tiny"))


def test_an_artifact_is_hashed_and_built_again_by_its_id(project: Path) -> None:
    assert "9 artifacts hashed again: every bit is the same" in specc(project, "verify", "tiny.yaml").stderr
    results = one_rank(json.loads((project / "tiny.lock.json").read_text()))
    draft = results["draft"][:12]
    assert "1 artifact built again: every bit is the same" in specc(project, "verify", draft, "--rebuild").stderr
    forced = specc(project, "build", "--force", "--stage", "vocabulary", "--offline", "tiny.yaml").stderr
    assert "vocabulary: started" in forced
    assert "tokens: started" not in forced


COVERING = {(1, 1, 1, "bf16"), (2, 2, 2, "fp32"), (1, 2, 3, "bf16"), (2, 1, 0, "fp32")}
"""Every value of each of the four, in as few builds as that takes; the others are run in `make test-full`."""
CLASSES = [
    pytest.param(*case, id="-".join(map(str, case)), marks=() if case in COVERING else pytest.mark.full)
    for case in product((1, 2), (1, 2), range(4), ("fp32", "bf16"))
    if case[2:] != (0, "bf16")
]


@pytest.mark.parametrize(("threads", "ranks", "stage", "precision"), CLASSES)
def test_a_draft_repeats_in_its_class(project: Path, threads: int, ranks: int, stage: int, precision: str) -> None:
    text = SPEC.replace("  epochs: 1\n", f"  epochs: 1\n  precision: {precision}\n  zero: {{stage: {stage}}}\n")
    text = text.replace("{threads: 2}", f"{{threads: {threads}, train: {{ranks: {ranks}}}}}")
    (project / "variant.yaml").write_text(text)
    built = json.loads(specc(project, "build", "--stage", "draft", "--json", "variant.yaml").stdout)["artifacts"]
    draft = built["draft"].removeprefix("sha256:")
    assert "1 artifact built again: every bit is the same" in specc(project, "verify", draft, "--rebuild").stderr


def test_status_show_and_serve_speak_of_what_was_built(project: Path) -> None:
    assert specc(project, "status", "tiny.yaml").stdout.count("current") == 9
    assert "greedy output in fp32: 2 of 2 prompts identical" in specc(project, "show", "tiny.yaml").stdout
    command = specc(project, "serve", "--dry-run", "tiny.yaml").stdout
    assert "--speculative-config" in command
    assert "checkpoint-tiny" in command


def test_a_corrupted_lock_entry_is_a_difference(project: Path) -> None:
    lock = project / "tiny.lock.json"
    text = lock.read_text()
    raw = json.loads(text)
    results = one_rank(raw)
    results["draft"] = "0" * 64
    lock.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
    done = specc(project, "build", "--locked", "tiny.yaml", expect=4)
    assert "the stage `draft` came out as" in done.stderr
    lock.write_text(text)


KILLS = [
    ("verifier", 0.5), ("responses", 12), ("responses", 12), ("hidden_states", 12), ("hidden_states", 12),
    ("draft", 8), ("draft", 8), ("draft", 8), ("checkpoint", 1), ("evaluation", 12),
]  # fmt: skip
"""Stages (or those after them) that are killed in the middle, and how many seconds after their start at most."""


def test_a_build_that_is_killed_ten_times_comes_to_the_same_digests(project: Path, tmp_path: Path) -> None:
    """SIGKILL at random points: of `specc`, whose stage must then die too, or of the stage, which `specc` must say."""
    random = Random(20261124)  # noqa: S311 - it must repeat
    other = tmp_path / "killed"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns(".specc"))
    command = [str(Path(sys.executable).parent / "specc"), "build", "--locked", "tiny.yaml"]
    for number, (stage, longest) in enumerate(KILLS):
        build = subprocess.Popen(command, cwd=other, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert build.stderr is not None
        later = [f"{name}: started" for name in list(ROWS)[list(ROWS).index(stage) :]]
        for line in build.stderr:
            if line.startswith(tuple(later)):
                break
        else:
            pytest.fail(f"`{stage}` did not start in build {number}")
        time.sleep(random.uniform(0, longest))
        children = processes_of(other)
        if number % 2 or not children:
            build.kill()
        else:
            with suppress(ProcessLookupError):  # it has finished just now
                os.kill(random.choice(children), signal.SIGKILL)
            time.sleep(1)
            assert build.poll() in (None, 3)
            build.kill()
        build.communicate()
        deadline = time.monotonic() + 5
        while processes_of(other) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes_of(other), "a stage outlived specc"
    found = json.loads(specc(other, "build", "--locked", "--json", "tiny.yaml").stdout)["artifacts"]
    results = one_rank(json.loads((project / "tiny.lock.json").read_text()))
    assert found == {name: f"sha256:{digest}" for name, digest in results.items()}


SWEEP = """\
extends: tiny.yaml
name: sweep
matrix:
  train.optimizer.learning_rate: [1e-3, 2e-3]
"""


def test_a_matrix_trains_many_drafts_on_one_set_of_hidden_states(project: Path) -> None:
    """The rate of the base is trained already, and every stage before it is there."""
    store = project / ".specc/store"
    (project / "sweep.yaml").write_text(SWEEP)
    before = {stage: len(list(store.glob(f"*-{stage}-*/"))) for stage in ROWS}
    done = specc(project, "build", "sweep.yaml", "--json")
    made = {stage: len(list(store.glob(f"*-{stage}-*/"))) - count for stage, count in before.items()}
    made.pop("evaluation")  # of two drafts that nothing was accepted of, they are the same bytes
    assert {stage: count for stage, count in made.items() if count} == {"draft": 1, "checkpoint": 2}
    builds = json.loads(done.stdout)["builds"]
    assert list(builds) == [f"train.optimizer.learning_rate={rate}" for rate in ("0.001", "0.002")]
    assert len({build["artifacts"]["hidden_states"] for build in builds.values()}) == 1
    assert len({build["artifacts"]["draft"] for build in builds.values()}) == 2
    assert all(check["met"] for build in builds.values() for check in build["checks"])
    found = json.loads(specc(project, "status", "sweep.yaml", "--json").stdout)["builds"]
    assert [build["state"] for build in found] == ["current", "current"]
    assert [build["acceptance"] for build in found] == sorted((build["acceptance"] for build in found), reverse=True)
    assert all(build["acceptance"] >= 1 and build["loss"] > 0 and build["seconds"] > 0 for build in found)
    assert "nothing to do: 2 builds" in specc(project, "build", "--locked", "sweep.yaml").stderr
    served = specc(project, "serve", "--dry-run", "--only", "learning_rate=2e-3", "sweep.yaml").stdout
    assert (
        builds["train.optimizer.learning_rate=0.002"]["artifacts"]["checkpoint"].removeprefix("sha256:")[:12] in served
    )
