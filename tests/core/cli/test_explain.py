"""`specc explain`: stages, fields and errors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from projects import SPEC, Project, make_project
from specc.core.language.explanations import EXPLANATIONS, page


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def test_every_error_has_a_page(project: Project) -> None:
    for identity, text in EXPLANATIONS.items():
        said = project.run("explain", identity)[0]
        assert said.startswith(f"{identity}: {text if '. ' in text else text.removesuffix('.')}\n  why      ")
        assert "what specc says of it:\n\n  error: " in said
        assert json.loads(project.run("explain", "--json", identity)[0]) == asdict(page(identity))
    assert "did you mean `E0" in project.run("explain", "E02O3", expect=1)[1]
    assert "name a stage or a field" in project.run("explain", "tiny.yaml", expect=2)[1]


def test_an_error_s_page(project: Project) -> None:
    assert project.run("explain", "E0216")[0] == (
        "E0216: The warm-up ends before the training does\n"
        "  why      Else the learning rate never reaches its peak\n"
        "  instead  Shorten it: below 1 a warm-up is a share of all steps\n\n"
        "warmup-longer-than-training.yaml:\n\n"
        "  version: 1\n"
        "  name: my-speculator\n"
        "  verifier: {model: org/verifier}\n"
        "  draft: {algorithm: eagle3}\n"
        "  data:\n"
        "    sources:\n"
        "      - file: ../prompts/train.jsonl\n"
        "  train:\n"
        "    steps: 100\n"
        "    schedule: {warmup: 100}\n\n"
        "what specc says of it:\n\n"
        "  error: warmup-longer-than-training.yaml:10:22: the warm-up of 100 steps is as long as the training of 100\n"
        "    10 |   schedule: {warmup: 100}\n"
        "       |                      ^^^\n\n"
        "  hint: a warm-up below 1 is a share of all steps: `warmup: 0.01`\n"
    )


def test_without_an_id_all_errors_are_listed(project: Project) -> None:
    lines = project.run("explain")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(EXPLANATIONS)
    assert "E0216  The warm-up ends before the training does" in lines
    listed = json.loads(project.run("explain", "--json")[0])["errors"]
    assert {item["id"]: item["sentence"] for item in listed} == dict(EXPLANATIONS)
    assert "`specc explain` lists all ids" in project.run("explain", "nothing", expect=1)[1]


def test_a_field_s_page(project: Project) -> None:
    out = project.run("explain", "tiny.yaml", "train.batch_tokens")[0]
    assert out.splitlines() == [
        "train.batch_tokens: 4096",
        "  from     tiny.yaml:9",
        "  default  8192",
        "  means    Number of tokens of one optimizer step, over all ranks",
        "  takes    a whole number of at least 1",
        "  read by  draft, checkpoint",
    ]


def test_where_values_come_from(project: Project) -> None:
    def origin(field: str) -> str:
        return json.loads(project.run("explain", "--json", "tiny.yaml", field)[0])["origin"]

    assert origin("train.seed") == "default (language v1)"
    assert origin("draft.hidden_state_layers").startswith("derived from verifier.config.num_hidden_layers")
    assert origin("verifier.config.hidden_size") == "read from the verifier `./tiny`"
    assert origin("data.sources.0.file") == "tiny.yaml:6"
    found = json.loads(project.run("explain", "--json", "tiny.yaml", "verifier.config.num_hidden_layers")[0])
    assert "draft.hidden_state_layers" in found["derives"]


@pytest.mark.parametrize(
    ("field", "read_by", "rebuilds"),
    [
        ("checks.lossless", [], []),
        ("export.dtype", ["checkpoint"], []),
        ("runtime.threads", ["hidden_states", "draft"], ["checkpoint"]),
        ("data.shard_rows", ["conversations", "tokens", "checkpoint"], ["vocabulary", "hidden_states", "draft"]),
    ],
)
def test_what_depends_on_a_field(project: Project, field: str, read_by: list[str], rebuilds: list[str]) -> None:
    found = json.loads(project.run("explain", "--json", "tiny.yaml", field)[0])
    assert (found["read_by"], found["rebuilds"]) == (read_by, rebuilds)


def test_a_field_may_be_shortened(project: Project) -> None:
    assert project.run("explain", "tiny.yaml", "train.learning_rate")[0].startswith("train.optimizer.learning_rate: ")
    assert project.run("explain", "tiny.yaml", "threads")[0].startswith("runtime.threads: 4\n")
    _, err = project.run("explain", "tiny.yaml", "max_tokens", expect=0)
    _, err = project.run("explain", "tiny.yaml", "seed", expect=1)
    assert "`seed` may mean 2 fields\n  data.responses.seed\n  train.seed" in err
    _, err = project.run("explain", "tiny.yaml", "train.lerning_rate", expect=1)
    assert "has no stage and no field `train.lerning_rate`" in err
    assert "did you mean `train.optimizer.learning_rate`?" in err


def test_a_section_lists_its_fields(project: Project) -> None:
    out = project.run("explain", "tiny.yaml", "train.zero")[0]
    assert "train.zero\n  means    DeepSpeed's ZeRO\n" in out
    assert "  stage    1     default (language v1)\n" in out


def test_why_a_stage_is_built(project: Project) -> None:
    digest = project.build()["vocabulary"]
    out = project.run("explain", "tiny.yaml", "vocabulary")[0]
    assert out.startswith(f"vocabulary: nothing in its key has changed; its artifact sha256:{digest} has ")
    (project.folder / "tiny.yaml").write_text(SPEC.replace("shard_rows: 8", "shard_rows: 4"))
    assert project.run("explain", "tiny.yaml", "vocabulary")[0].splitlines() == [
        "vocabulary: perhaps to be built",
        "  tokens: to be built",
        "    data.shard_rows 8 → 4 (tiny.yaml:8)",
        "    conversations: to be built",
        "      data.shard_rows 8 → 4 (tiny.yaml:8)",
    ]
    data = json.loads(project.run("explain", "--json", "tiny.yaml", "conversations")[0])
    assert data["changes"][0]["where"] == "tiny.yaml:8"
