"""`specc explain`: stages, fields and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from projects import SPEC, Project, make_project
from specc.core.language.explanations import EXPLANATIONS


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def test_every_error_has_a_page(project: Project) -> None:
    for identity, text in EXPLANATIONS.items():
        assert project.run("explain", identity)[0] == f"{identity}\n  {text}\n"
    assert json.loads(project.run("explain", "--json", "E0203")[0])["id"] == "E0203"
    assert "did you mean `E0" in project.run("explain", "E02O3", expect=1)[1]
    assert "name a stage or a field" in project.run("explain", "tiny.yaml", expect=2)[1]


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
