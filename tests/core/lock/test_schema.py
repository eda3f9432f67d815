"""The lock's schema: current, described, met by every lock that specc writes and by no damaged one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from projects import write_verifier
from specc.core.algorithms import ALGORITHMS
from specc.core.cli import main
from specc.core.compiler import compile_spec, with_results
from specc.core.language.schema import fields, published_path, render
from specc.core.lock import CLASSES, dump
from specc.core.lock.schema import FILE, build_lock_schema
from specc.core.plan import lower

ROOT = Path(__file__).resolve().parents[3]
LOCKS = sorted((ROOT / "specs").glob("*.lock.json"))
Capture = pytest.CaptureFixture[str]
VALIDATOR = Draft7Validator(json.loads((ROOT / "schema" / FILE).read_text()))


def places(lock: dict[str, Any]) -> list[str]:
    """Return where a lock differs from the schema."""
    return [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(lock)]


# The schema


def test_the_published_schema_is_what_the_models_say() -> None:
    assert published_path(FILE) == ROOT / "schema" / FILE
    assert published_path(FILE).read_text() == render(build_lock_schema())


def test_it_is_draft_07_with_a_versioned_id_and_no_references_but_to_parts_of_itself() -> None:
    schema = build_lock_schema()
    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["$id"] == "urn:specc:schema:lock:v1"
    text = json.dumps(schema)
    assert not any(f'"{word}"' in text for word in ("$defs", "oneOf", "discriminator", "default"))
    assert set(re.findall(r'"\$ref": "([^"]*)"', text)) == {"#/definitions/locked", "#/definitions/results"}


def test_every_field_is_described_and_every_choice_of_an_algorithm_is_in_it() -> None:
    found = fields(build_lock_schema())
    for path, (rule, _) in found.items():
        assert rule.get("description", "").endswith("."), path
    draft = {name.removeprefix("locked.values.draft.") for name in found if name.startswith("locked.values.draft.")}
    for row in ALGORITHMS.values():
        assert {field.alias or name for name, field in row.section.model_fields.items()} <= draft


def test_the_command_prints_it_and_compares_both(tmp_path: Path, capsys: Capture) -> None:
    assert main(["schema", "--lock"]) == 0
    printed = capsys.readouterr().out
    assert printed == (ROOT / "schema" / FILE).read_text()
    assert main(["schema", "--check"]) == 0
    assert capsys.readouterr().err.count("ok: ") == 2
    file = tmp_path / FILE
    file.write_text(printed)
    assert main(["schema", "--lock", "--check", str(file)]) == 0
    file.write_text(printed.replace("What was decided", "What is decided"))
    capsys.readouterr()
    assert main(["schema", "--lock", "--check", str(file)]) == 1
    assert f"hint: `specc schema --lock > {file}` writes it anew" in capsys.readouterr().err
    assert main(["schema", "--lock", "--field", "locked.values.verifier.revision"]) == 0
    assert "Commit of a hub id" in capsys.readouterr().out
    assert main(["schema", "--lock", "--field", "locked.values.verifier.revison"]) == 1
    assert capsys.readouterr().err.startswith("error: the lock has no field `locked.values.verifier.revison`")


# Locks that specc writes

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny}
data:
  sources: [{file: prompts.jsonl, rows: 1}]
"""
DRAFT = "draft: {algorithm: eagle3}\n"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 12,
    "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 400, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "rope_scaling": {"type": "linear", "factor": 2.0}, "eos_token_id": [2, 3],
}  # fmt: skip
SPECS = {
    "short": SPEC + DRAFT,
    "full vocabulary": SPEC + "draft: {algorithm: eagle3, vocabulary: full, sliding_window: 128}\n",
    "initial weights": SPEC + "draft: {algorithm: eagle3, init: {from: ./tiny}}\n",
    "muon": SPEC + DRAFT + "train: {optimizer: {name: muon}, loss: {kl: 0.9, ce: 0.1}, steps: 3, "
    "gradient_clipping: null, schedule: {warmup: 2}}\n",
    "held out": SPEC + "  validation: [{file: held-out.jsonl}]\n  responses: {from: data}\n" + DRAFT,
    "phases": SPEC + DRAFT + "runtime: {store: here, train: {ranks: [{ranks: 2, until: 10}, {ranks: 1}]}}\n",
    "evaluation": SPEC + DRAFT + "evaluate: {prompts: [{file: held-out.jsonl}]}\nchecks: {lossless: true}\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the specs name."""
    write_verifier(tmp_path / "tiny", CONFIG)
    for name in ("prompts.jsonl", "held-out.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name}) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.mark.parametrize("name", SPECS)
def test_a_lock_meets_the_schema(project: Path, name: str, capsys: Capture) -> None:
    spec = project / "tiny.yaml"
    spec.write_text(SPECS[name])
    assert main(["lock", "tiny.yaml"]) == 0, capsys.readouterr().err
    assert places(json.loads(spec.with_name("tiny.lock.json").read_text())) == []
    compiled = compile_spec(spec)
    for row in CLASSES.values():
        plan = lower(compiled.lock.locked.values, row)
        built = with_results(compiled.lock, plan.numerics, {stage.name: "ab" * 32 for stage in plan.stages})
        assert places(json.loads(dump({"": built}))) == []


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_the_committed_locks_meet_the_schema(path: Path) -> None:
    assert places(json.loads(path.read_text())) == []


# Locks that are damaged

VALUES = "locked.values."
GONE = object()


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("lock", 2, "lock"),
        ("lock", GONE, ""),
        ("locked", GONE, ""),
        ("results", GONE, ""),
        ("host", "here", ""),
        ("locked.class", GONE, "locked"),
        ("locked.time", "now", "locked"),
        ("locked.engines.cuda.torch", "http://127.0.0.1/torch.whl", "locked.engines.cuda.torch"),
        ("locked.engines.cuda.--index-url", "1.0", "locked.engines.cuda"),
        ("locked.stages.draft", "1", "locked.stages.draft"),
        ("locked.stages.a stage", 1, "locked.stages"),
        ("locked.written", ["version"], "locked.written"),
        ("results.cpu-amx-t2-r1", {"draft": "sha256:abc"}, "results.cpu-amx-t2-r1.draft"),
        ("results.somewhere", {}, "results"),
        (VALUES + "date", "yesterday", VALUES + "date"),
        (VALUES + "date", GONE, VALUES[:-1]),
        (VALUES + "train.learing_rate", 1e-4, VALUES + "train"),
        (VALUES + "train.seed", -1, VALUES + "train.seed"),
        (VALUES + "train.loss", "kl", VALUES + "train.loss"),
        (VALUES + "train.optimizer.momentum", 0.9, VALUES + "train.optimizer"),
        (VALUES + "draft.algorithm", "eagle4", VALUES + "draft.algorithm"),
        (VALUES + "draft.init", {"from": "./earlier"}, VALUES + "draft.init"),
        (VALUES + "data.validation", 0.1, VALUES + "data.validation"),
        (VALUES + "data.sources", [{"file": "prompts.jsonl", "rows": 1}], VALUES + "data.sources.0"),
        (VALUES + "verifier.revision", "main", VALUES + "verifier.revision"),
        (VALUES + "verifier.tokenizer_sha256", "eed6", VALUES + "verifier.tokenizer_sha256"),
        (VALUES + "verifier.files", {"/absolute": "ab" * 32}, VALUES + "verifier.files"),
        (VALUES + "verifier.config.vocab_size", GONE, VALUES + "verifier.config"),
        (VALUES + "verifier.config.hidden_size", 0, VALUES + "verifier.config.hidden_size"),
    ],
)
def test_a_damaged_lock_does_not(path: str, value: object, place: str) -> None:
    lock = json.loads((ROOT / "specs/quickstart.lock.json").read_text())
    change(lock, path, lambda node, key: node.pop(key) if value is GONE else node.update({key: value}))
    assert place in places(lock)


def change(lock: dict[str, Any], path: str, how: Callable[[dict[str, Any], str], object]) -> None:
    """Change a lock at a dotted path."""
    *parents, last = path.split(".")
    node = lock
    for part in parents:
        node = node[part]
    how(node, last)
