"""`lock`, `plan` and `status` as a user runs them, on a verifier of which only the small files exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from projects import BUILT, make_project, write_verifier
from projects import SPEC as SMALL
from specc.core.cli import main

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
draft: {algorithm: eagle3}
data:
  sources: [{file: prompts.jsonl}]
train:
  batch_tokens: 4096
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 400, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec whose verifier can be locked and not run."""
    write_verifier(tmp_path / "tiny", CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    (tmp_path / "tiny.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECC_STORE", raising=False)
    return tmp_path / "tiny.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> tuple[str, str]:
    """Run a command in this process; return its standard output and standard error."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert code == expect, out + err
    return out, err


def locked(spec: Path) -> dict[str, Any]:
    """Return the lock of the spec."""
    return json.loads(spec.with_name("tiny.lock.json").read_text())


def test_lock_pins_every_value_and_every_file(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    part = locked(spec)["locked"]
    assert part["values"]["draft"]["hidden_state_layers"] == [2, 6, 9]
    assert part["values"]["draft"]["vocabulary"] == 400
    assert part["values"]["data"]["sequence_length"] == 2048
    assert set(part["values"]["verifier"]["files"]) == {
        "config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors",
    }  # fmt: skip
    assert "train.batch_tokens" in part["written"]
    assert "train.seed" not in part["written"]
    assert str(spec.parent) not in spec.with_name("tiny.lock.json").read_text()


def test_a_current_lock_is_left_as_it_is(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    before = spec.with_name("tiny.lock.json").stat().st_mtime_ns
    _, err = run(capsys, "lock", "tiny.yaml")
    assert "up to date" in err
    assert spec.with_name("tiny.lock.json").stat().st_mtime_ns == before
    run(capsys, "lock", "--check", "tiny.yaml")


def test_a_stale_lock_names_value_both_sides_and_line(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    spec.write_text(SPEC.replace("4096", "8192"))
    _, err = run(capsys, "lock", "--check", "tiny.yaml", expect=1)
    assert err == (
        "error: the lock tiny.lock.json is stale, and `--check` was given\n"
        "  train.batch_tokens: 4096 in the lock, 8192 in the spec (tiny.yaml:8)\n"
        "\nhint: `specc lock tiny.yaml` writes it anew\n"
    )
    run(capsys, "lock", "--dry-run", "tiny.yaml")
    assert locked(spec)["locked"]["values"]["train"]["batch_tokens"] == 4096


def test_changed_prompts_make_the_lock_stale(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    (spec.parent / "prompts.jsonl").write_text('{"prompt": "Hello again"}\n')
    _, err = run(capsys, "lock", "--check", "tiny.yaml", expect=1)
    assert "data.sources" in err


def test_a_default_of_another_release_does_not_change_a_locked_build(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "lock", "tiny.yaml")
    lock = spec.with_name("tiny.lock.json")
    raw = locked(spec)
    raw["locked"]["values"]["train"]["seed"] = 7  # what that release had as its default
    lock.write_text(json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    run(capsys, "lock", "--check", "tiny.yaml")
    spec.write_text(SPEC.replace("4096", "8192"))
    run(capsys, "lock", "tiny.yaml")
    assert locked(spec)["locked"]["values"]["train"]["seed"] == 7, "another value moved, this default did not"
    run(capsys, "lock", "--upgrade", "tiny.yaml")
    assert locked(spec)["locked"]["values"]["train"]["seed"] == 42


def test_a_value_that_is_no_longer_written_goes_back_to_its_default(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec.write_text(SPEC + "  seed: 7\n")
    run(capsys, "lock", "tiny.yaml")
    spec.write_text(SPEC)
    run(capsys, "lock", "tiny.yaml")
    assert locked(spec)["locked"]["values"]["train"]["seed"] == 42


def test_without_the_verifier_the_lock_is_enough(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    for file in (spec.parent / "tiny").iterdir():
        file.unlink()
    (spec.parent / "tiny").rmdir()
    run(capsys, "lock", "--check", "tiny.yaml")
    out, _ = run(capsys, "plan", "tiny.yaml")
    assert "hidden_states" in out
    _, err = run(capsys, "build", "tiny.yaml", expect=1)
    assert "there is no verifier at `./tiny`" in err


def test_conflict_markers_are_resolved_by_locking_anew(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    lock = spec.with_name("tiny.lock.json")
    text = lock.read_text()
    lock.write_text("<<<<<<< ours\n" + text + "=======\n" + text + ">>>>>>> theirs\n")
    run(capsys, "lock", "tiny.yaml")
    assert lock.read_text() == text


def test_plan_writes_nothing_and_says_what_there_is_to_do(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "plan", "--detailed-exitcode", "tiny.yaml", expect=5)
    assert "plan: 0 hits, 7 to build" in out
    assert "there is no lock yet" in err
    assert not spec.with_name("tiny.lock.json").exists()
    data = json.loads(run(capsys, "plan", "--json", "--class", "cuda", "tiny.yaml")[0])
    assert data["class"] == "cuda-t4-r1"
    assert next(stage["stage"] for stage in data["stages"]) == "verifier"


def test_plan_warns_when_the_answers_are_not_the_verifiers(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])["warnings"] == []
    text = spec.read_text()
    spec.write_text(text.replace("prompts.jsonl}]\n", "prompts.jsonl}]\n  responses: {from: data}\n"))
    (spec.parent / "prompts.jsonl").write_text('{"prompt": "Hello", "completion": "Hi"}\n')
    err = run(capsys, "plan", "tiny.yaml")[1]
    assert "warning: the answers are the data's own and not the verifier's (`data.responses.from: data`)" in err
    spec.write_text(text.replace(
        "prompts.jsonl}]\n", "prompts.jsonl}]\n  responses: {endpoint: {model: tiny, protocol: chat}}\n"))  # fmt: skip
    (warning,) = json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])["warnings"]
    assert "`protocol: completions` sends token ids" in warning


def test_where_an_endpoint_is_and_how_it_is_asked_decides_nothing(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = spec.read_text().replace("prompts.jsonl}]\n", "prompts.jsonl}]\n  responses: {endpoint: {model: tiny}}\n")
    spec.write_text(asked)
    run(capsys, "lock", "tiny.yaml")
    before = json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])
    (stage,) = (stage for stage in before["stages"] if stage["stage"] == "responses")
    assert stage["estimate"]["complete"] is False
    spec.write_text(asked + "runtime: {datagen: {endpoint: 'http://secret.example:8000/v1'}}\n")
    run(capsys, "lock", "--check", "tiny.yaml")
    run(capsys, "lock", "tiny.yaml")
    assert "secret" not in spec.with_name("tiny.lock.json").read_text()
    spec.write_text(asked.replace("{model: tiny}", "{model: tiny, concurrency: 7, retries: 1, timeout: 9, refused: 3}"))
    run(capsys, "lock", "tiny.yaml")
    after = json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])
    assert [stage["recipe"] for stage in after["stages"]] == [stage["recipe"] for stage in before["stages"]]
    spec.write_text(asked.replace("{model: tiny}", "{model: other}"))
    other = json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])
    changed = {new["stage"] for new, old in zip(other["stages"], before["stages"], strict=True)
               if new["recipe"] != old["recipe"]}  # fmt: skip
    assert changed >= {"responses", "tokens", "hidden_states", "draft", "checkpoint"}


def test_devices_are_in_no_lock_and_in_no_key(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    before = spec.with_name("tiny.lock.json").read_bytes()
    plan = json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])
    spec.write_text(spec.read_text() + "runtime: {datagen: {devices: [0, 1]}, train: {devices: [2]}}\n")
    run(capsys, "lock", "--check", "tiny.yaml")
    run(capsys, "lock", "tiny.yaml")
    assert spec.with_name("tiny.lock.json").read_bytes() == before
    after = json.loads(run(capsys, "plan", "--json", "tiny.yaml")[0])
    assert [stage["recipe"] for stage in after["stages"]] == [stage["recipe"] for stage in plan["stages"]]


def test_a_class_that_nobody_knows_is_a_usage_error(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, "plan", "--class", "abacus", "tiny.yaml", expect=2)
    assert "no class of machines `abacus`" in err
    assert "`cpu-amx`" in err


def test_facts_of_the_verifier_are_held_against_the_spec(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC.replace("{algorithm: eagle3}", "{algorithm: eagle3, hidden_state_layers: [2, 6, 99]}"))
    _, err = run(capsys, "lock", "tiny.yaml", expect=1)
    assert "tiny.yaml:4" in err
    assert "99" in err


def test_errors_are_data_with_json(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC.replace("train:", "trian:"))
    out, _ = run(capsys, "lock", "--json", "tiny.yaml", expect=1)
    (error,) = json.loads(out)["errors"]
    assert error["where"]["line"] == 7
    assert "train" in error["note"]


def test_a_place_that_cannot_be_written_is_said_in_words(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, "plan", "--out", "/proc/plan.json", str(spec), expect=3)
    assert err.startswith("error: /proc/")
    assert "write to another place" in err


PLAN = """\
stage          key       action  time    disk    memory  why
verifier       01234567  build   0 s     516 B   42 MB   never built here
conversations  01234567  build   0 s     210 B   42 MB   never built here
responses                build   12 s    2 kB    2.5 GB  never built here
tokens                   build   0 s     2 kB    42 MB   never built here
hidden_states            build   12 s    116 kB  2.5 GB  never built here
draft                    build   6 s     528 kB  747 MB  never built here
checkpoint               build   0 s     234 kB  43 MB   never built here
plan: 0 hits, 7 to build, about 30 s on this machine (declared), 883 kB on disk, 2.5 GB of memory
"""


@pytest.mark.usefixtures("spec")
def test_plan_says_what_each_stage_takes_and_what_all_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specc.core.cli.decisions.machine_name", lambda: "cpu-avx2")
    out, _ = run(capsys, "plan", "--class", "cpu-avx2", "tiny.yaml")
    assert re.sub(r"\b[0-9a-f]{8}\b", "01234567", out) == PLAN
    out, _ = run(capsys, "plan", "--class", "cpu-amx", "tiny.yaml")
    assert "about 30 s on a machine of the class `cpu-amx` (declared)" in out
    Path("prompts.jsonl").unlink()
    assert "there is no file" in run(capsys, "plan", "tiny.yaml", expect=1)[1]


def test_plan_says_that_it_cannot_count_rows_that_are_elsewhere(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "lock", "tiny.yaml")
    (spec.parent / "prompts.jsonl").unlink()
    assert "7 to build, more than " in run(capsys, "plan", "tiny.yaml")[0]


def test_plan_as_data_has_every_number_and_their_sum(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(run(capsys, "plan", "--json", "--out", "plan.json", "tiny.yaml")[0])
    assert json.loads((spec.parent / "plan.json").read_text()) == data
    parts = [stage["estimate"] for stage in data["stages"]]
    assert set(data["estimate"]) == {"seconds", "disk", "memory", "tokens", "flops", "measured", "complete"}
    assert data["estimate"]["seconds"] == pytest.approx(sum(part["seconds"] for part in parts), abs=0.01)
    assert data["estimate"]["disk"] == sum(part["disk"] for part in parts)
    assert data["estimate"]["memory"] == max(part["memory"] for part in parts)
    assert data["estimate"]["measured"] is False
    status = json.loads(run(capsys, "status", "--json", "tiny.yaml")[0])
    assert [stage["estimate"] for stage in status["stages"]] == parts


def test_what_is_built_stands_beside_what_the_plan_said(quick_path: Path) -> None:
    project = make_project(quick_path)
    said = json.loads(project.run("plan", "--json", "tiny.yaml")[0])["stages"]
    _, err = project.run("build", "--stage", "conversations", "tiny.yaml")
    assert re.search(r"^built: conversations sha256:[0-9a-f]{64}$", err, re.MULTILINE)
    assert re.search(r"^  took \d+ s; the plan said 0 s$", err, re.MULTILINE)
    out, err = project.run("build", "--json", "--stage", "tokens", "tiny.yaml")
    built = json.loads(out)
    assert built["estimate"]["tokens"] > 0
    assert built["estimate"]["disk"] < sum(stage["estimate"]["disk"] for stage in said[:3]), "tokens alone were built"
    assert built["seconds"] > 0
    out, err = project.run("build", "--json", "--stage", "tokens", "tiny.yaml")
    assert json.loads(out)["estimate"] is None
    assert "took" not in project.run("build", "--stage", "tokens", "tiny.yaml")[1]


def test_what_is_there_takes_nothing_and_what_was_measured_is_said_to_be(quick_path: Path) -> None:
    project = make_project(quick_path)
    project.build()
    out, _ = project.run("plan", "tiny.yaml")
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert [lines[name][2] for name in ("verifier", "conversations", "tokens", "vocabulary")] == ["hit"] * 4
    assert len(lines["tokens"]) == 5, "its size is all there is to say"
    (project.folder / "tiny.yaml").write_text(SMALL.replace("shard_rows: 8", "shard_rows: 9"))
    out, _ = project.run("plan", "tiny.yaml")
    assert "(partly measured)" in out, "text was cut into shards here, and nothing was trained"
    stages = json.loads(project.run("plan", "--json", "tiny.yaml")[0])["stages"]
    measured = {stage["stage"] for stage in stages if stage["estimate"]["measured"]}
    assert "tokens" in measured <= set(BUILT)
