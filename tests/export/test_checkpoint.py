"""The stage `checkpoint` in its own process: its files, their bytes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import drafts
from small import make_verifier
from specc.core.algorithms import algorithm
from specc.core.contracts import Failure
from specc.core.errors import SpeccError
from specc.core.files import entries, sha256_file, tensor_headers
from specc.export import read_speculator
from specc.export.card import card
from specc.export.provenance import materials

pytestmark = pytest.mark.engine

GOLDEN = Path(__file__).parent / "golden" / "config.json"
FILES = ["README.md", "config.json", "model.safetensors", "provenance.json", "specc.json"]


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=8)


@pytest.fixture(scope="module")
def checkpoint(verifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage writes in a process of its own."""
    return drafts.build_checkpoint(tmp_path_factory.mktemp("stage"), drafts.resolved(verifier), verifier)


def test_the_same_job_writes_the_same_bytes(checkpoint: Path, verifier: Path, tmp_path: Path) -> None:
    again = drafts.build_checkpoint(tmp_path, drafts.resolved(verifier), verifier)
    assert entries(again) == entries(checkpoint)
    assert [entry.path for entry in entries(again)] == FILES


def test_config_is_the_golden_one(checkpoint: Path) -> None:
    assert (checkpoint / "config.json").read_text() == GOLDEN.read_text()


def test_tensors_are_those_of_the_layout_and_come_from_where_it_says(checkpoint: Path, verifier: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    values = drafts.resolved(verifier)
    layout = algorithm("eagle3").layout(values["draft"], values["verifier"]["config"])
    weights = checkpoint / "model.safetensors"
    assert [header.name for header in tensor_headers(weights)] == [spec.name for spec in layout]
    with safe_open(weights, framework="pt") as file:
        assert file.metadata() is None
    tensors = load_file(weights)
    embedding = load_file(verifier / "model.safetensors")["model.embed_tokens.weight"]
    chosen = torch.arange(96) * 4  # every fourth token, as drafts.write_vocabulary picks them
    assert torch.equal(tensors["embed_tokens.weight"], embedding)
    assert torch.equal(tensors["lm_head.weight"], embedding[chosen])
    assert torch.equal(tensors["d2t"] + torch.arange(96), chosen)
    trained = load_file(checkpoint.parent / "draft" / "model.safetensors")
    assert torch.equal(tensors["fc.weight"], trained["fc.weight"].bfloat16())


def test_no_word_of_this_machine_is_in_any_file(verifier: Path, tmp_path: Path) -> None:
    values = drafts.resolved(verifier)
    values["verifier"]["model"] = str(verifier)
    values["data"]["sources"][0]["file"] = str(tmp_path / "mine" / "chats.jsonl")
    values["draft"]["init"] = {"from": "~/earlier", "files": {"config.json": "9" * 64}}
    folder = drafts.assemble(tmp_path / "c", values, verifier)
    for name in FILES:
        content = (folder / name).read_bytes()
        for word in (str(tmp_path), str(verifier.parent), "/home", "~/", "/tmp"):  # noqa: S108 - looked for, not used
            assert word.encode() not in content, (name, word)
    assert "chats.jsonl" in (folder / "README.md").read_text()


def test_the_card_says_how_to_serve_and_states_no_measurement(checkpoint: Path) -> None:
    text = (checkpoint / "README.md").read_text()
    assert "vllm serve VERIFIER --speculative-config" in text
    assert '"num_speculative_tokens": 3' in text
    assert "5" * 64 in text  # the data's sha256
    assert "{{" not in text
    assert "{%" not in text
    assert "2026" not in text
    assert "acceptance" not in text


def test_the_card_says_how_a_verifier_is_quantised(verifier: Path) -> None:
    values = drafts.resolved(verifier)
    assert "quantised" not in card(values)
    for group, said in ((128, "128 weights"), ("channel", "channel")):
        values["verifier"]["config"]["quantization"] = {"method": "awq", "scheme": "W4A16", "group": group}
        assert f"| weights | quantised by `awq`: W4A16, scales by {said} |" in card(values)


def test_the_card_names_a_hub_verifier_by_its_revision(verifier: Path, tmp_path: Path) -> None:
    values = drafts.resolved(verifier)
    values["verifier"] |= {"model": "org/model-1b", "name": "org/model-1b", "revision": "a" * 40}
    folder = drafts.assemble(tmp_path / "c", values, verifier)
    text = (folder / "README.md").read_text()
    assert 'base_model: "org/model-1b"' in text
    assert f"--revision {'a' * 40}" in text
    config = json.loads((folder / "config.json").read_text())
    assert config["speculators_config"]["verifier"]["name_or_path"] == "org/model-1b"


def test_materials_are_the_files_of_every_kind_of_source() -> None:
    sources = [
        {"file": "/home/me/a.jsonl", "sha256": "1"},
        {"file": "d", "files": {"d/a.csv": "2", "d/b.csv": "3"}},
        {"dataset": "org/name", "files": {"train.parquet": "4"}, "commit": "c", "licence": "mit"},
    ]
    held = [{"url": "https://example.org/rows.jsonl", "sha256": "5"}]
    params = {"verifier": {"files": {}}, "draft": {}, "data": {"sources": sources, "validation": {"sources": held}}}
    assert {item["name"]: item["digest"]["sha256"] for item in materials(params)} == {
        "data/a.jsonl": "1", "data/d/a.csv": "2", "data/d/b.csv": "3", "data/org/name/train.parquet": "4",
        "data/https://example.org/rows.jsonl": "5",
    }  # fmt: skip


def test_provenance_names_every_file_that_went_in_and_came_out(checkpoint: Path) -> None:
    statement = json.loads((checkpoint / "provenance.json").read_text())
    subjects = {item["name"]: item["digest"]["sha256"] for item in statement["subject"]}
    assert subjects == {name: sha256_file(checkpoint / name) for name in FILES if name != "provenance.json"}
    named = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [item["name"] for item in named] == [
        "data/prompts/train.jsonl",
        "verifier/config.json",
        "verifier/model.safetensors",
    ]


def test_specc_json_holds_the_ancestors_values_and_nothing_of_the_evaluation(checkpoint: Path, verifier: Path) -> None:
    said = json.loads((checkpoint / "specc.json").read_text())
    values = drafts.resolved(verifier)
    assert said["stages"] == values["stages"]
    assert said["resolved"]["train"] == values["train"]
    assert set(said["resolved"]) == {"version", "date", "verifier", "draft", "data", "train", "export"}


def test_a_checkpoint_is_read_back(checkpoint: Path) -> None:
    config, headers = read_speculator(checkpoint)
    assert config["draft_vocab_size"] == 96
    assert headers == tensor_headers(checkpoint / "model.safetensors")


def _break(folder: Path, change: str) -> None:
    """Spoil the draft stage's weights in one way."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    norm = tensors.pop("norm.weight")
    if change == "misnamed":
        tensors["final_norm.weight"] = norm
    elif change == "misshapen":
        tensors["norm.weight"] = norm[:32].clone()
    elif change == "not finite":
        norm[3] = float("nan")
        tensors["norm.weight"] = norm
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 tensor does not fit the layout: `norm.weight` [64] is missing"),
        ("misnamed", "1 tensor does not fit the layout: `norm.weight` is named `final_norm.weight`"),
        ("misshapen", "1 tensor does not fit the layout: `norm.weight` is [32], not [64]"),
        ("not finite", "the trained tensor `norm.weight` holds values that are not finite"),
    ],
)
def test_a_bad_draft_is_found_before_vllm(change: str, message: str, verifier: Path, tmp_path: Path) -> None:
    values = drafts.resolved(verifier)
    draft = drafts.write_draft(tmp_path / "draft", values)
    _break(draft, change)
    from specc.export.weights import gather

    with pytest.raises(SpeccError) as caught:
        gather(values, draft, verifier, drafts.write_vocabulary(tmp_path / "vocabulary", values))
    assert caught.value.message == message
    assert caught.value.hint


def test_the_stage_reports_a_bad_draft_in_words(verifier: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = drafts.resolved(verifier)
    draft = drafts.write_draft(tmp_path / "draft", values)
    _break(draft, "missing")
    inputs = {"draft": draft, "verifier": verifier, "vocabulary": drafts.write_vocabulary(tmp_path / "v", values)}
    code, events = drafts.run_stage("export", "checkpoint", values, tmp_path, inputs=inputs)
    assert code == 3
    assert isinstance(events[-1], Failure)
    assert "`norm.weight` [64] is missing" in events[-1].message


def test_a_map_whose_halves_disagree_is_refused(verifier: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from specc.export.weights import vocabulary_map

    values = drafts.resolved(verifier)
    path = (drafts.write_vocabulary(tmp_path, values) or tmp_path) / "vocabulary.safetensors"
    tensors = load_file(path)
    tensors["d2t"][5] += 1
    save_file(tensors, path)
    with pytest.raises(SpeccError, match="do not name the same tokens"):
        vocabulary_map(path, 384)


def test_a_verifier_without_a_head_where_one_is_needed_is_refused(verifier: Path, tmp_path: Path) -> None:
    values = drafts.resolved(verifier)
    values["verifier"]["config"]["tie_word_embeddings"] = False
    with pytest.raises(SpeccError, match=r"the verifier has no tensor `lm_head\.weight`"):
        drafts.assemble(tmp_path / "c", values, verifier)
