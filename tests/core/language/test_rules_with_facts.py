"""Rules that need the verifier: over made-up facts, and over small verifiers as `specc lock` meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from projects import Project
from small import CHATML, CHATML_MARKED
from specc.core.language import Document, rules_with_facts
from specc.core.language.check import check_document
from specc.core.language.rules import template_error

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 30, "vocab_size": 49152, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "eos_token_ids": [2],
}  # fmt: skip
HEAD = "version: 1\nname: x\nverifier: {model: org/verifier}\n"
PROMPTS = "evaluate: {prompts: [{file: b.jsonl}]}\n"
FACTS = sorted((Path(__file__).parents[2] / "specs/bad/facts").glob("*.yaml"))
OF_A_CLASS = (
    "class-without-torchvision", "linear-attention-in-fp32", "quantised-for-no-cpu", "quantised-out-of-order",
)  # fmt: skip
"""Those that are bad on some machines only: a lock may be for another one."""
DATA = "data:\n  sources: [{file: a.jsonl}]\n"


def ids(draft: str = "", data: str = "", rest: str = "", **config: Any) -> list[tuple[str | None, str]]:
    text = f"{HEAD}draft: {{algorithm: eagle3{draft}}}\n{DATA}{data}{rest}"
    checked = check_document(Document.parse(text, "s.yaml"))
    return [(error.id, str(error.where)) for error in rules_with_facts(checked[0], CONFIG | config)]


def test_the_default_spec_fits_the_quickstart_s_verifier(root: Path) -> None:
    assert ids() == []
    quickstart = check_document(Document.read(root / "specs" / "quickstart.yaml"))
    assert rules_with_facts(quickstart[0], CONFIG) == []


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("convolution: {group: 16}", []),
        ("convolution: {group: 18}", [("E0315", "s.yaml:4:50", "use 16")]),
        ("selector: {candidates: 48}", []),
        ("selector: {candidates: 49}", [("E0315", "s.yaml:4:52", "use 48 or fewer")]),
    ],
)
def test_parts_of_dflash2_fit_the_verifier(part: str, expected: list[tuple[str, str, str]]) -> None:
    text = f"{HEAD}draft: {{algorithm: dflash2, {part}}}\n{DATA}"
    checked = check_document(Document.parse(text, "s.yaml"))
    found = rules_with_facts(checked[0], CONFIG | {"hidden_size": 64, "vocab_size": 48})
    assert [(error.id, str(error.where), error.hint) for error in found] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"draft": ", hidden_state_layers: [2, 15, 30]"}, []),
        ({"draft": ", hidden_state_layers: [2, 15, 31]"}, [("E0301", "s.yaml:4:57")]),
        ({"draft": ", vocabulary: 49152"}, []),
        ({"draft": ", vocabulary: full"}, []),
        ({"draft": ", vocabulary: 49153"}, [("E0302", "s.yaml:4:40")]),
        ({"data": "  sequence_length: 8192\n"}, []),
        ({"data": "  sequence_length: 8192\n", "max_position_embeddings": 4096}, [("E0303", "s.yaml:7:20")]),
        ({"rest": "train: {batch_tokens: 2048}\n"}, []),
        ({"rest": "train: {batch_tokens: 2047}\n"}, [("E0304", "s.yaml:7:23")]),
        ({"rest": "train: {batch_tokens: 1024}\n", "max_position_embeddings": 1024}, []),
        ({"data": "  responses: {max_tokens: 2048}\n"}, [("E0305", "s.yaml:7:27")]),
        ({"data": "  responses: {from: data}\n", "max_position_embeddings": 256}, []),
        ({"max_position_embeddings": 512}, [("E0305", "s.yaml:5:1")]),
        ({"rest": "evaluate: {prompts: [{file: b.jsonl}], max_tokens: 8192}\n"}, [("E0306", "s.yaml:7:52")]),
        ({"num_hidden_layers": 6}, [("E0307", "s.yaml:4:8")]),
        ({"num_hidden_layers": 6, "draft": ", hidden_state_layers: [1, 3, 5]"}, []),
        ({"num_hidden_layers": 8}, []),
        ({"draft": ", sliding_window: 8191"}, []),
        ({"draft": ", sliding_window: 8192"}, [("E0308", "s.yaml:4:44")]),
        ({"rest": "runtime: {datagen: {tensor_parallel: 3}}\n", "num_attention_heads": 9}, []),
        ({"rest": "runtime: {datagen: {tensor_parallel: 2}}\n", "num_attention_heads": 9}, [("E0330", "s.yaml:7:38")]),
        ({"eos_token_ids": []}, [("E0310", "s.yaml:3:19")]),
        ({"eos_token_ids": [], "data": "  responses: {from: verifier}\n"}, [("E0310", "s.yaml:7:21")]),
        ({"eos_token_ids": [], "data": "  responses: {from: data}\n"}, []),
        ({"rest": f"{PROMPTS}checks: {{mean_acceptance_length: '>= 4'}}\n"}, []),
        ({"rest": f"{PROMPTS}checks: {{mean_acceptance_length: '> 4'}}\n"}, [("E0229", "s.yaml:8:34")]),
        ({"rest": f"{PROMPTS}checks: {{mean_acceptance_length: '<1.0'}}\n"}, [("E0229", "s.yaml:8:34")]),
        ({"rest": f"{PROMPTS}checks: {{mean_acceptance_length: '<= 1'}}\n"}, []),
        ({"rest": "evaluate: {prompts: [{file: b.jsonl}], max_tokens: 3}\n"}, [("E0230", "s.yaml:7:52")]),
        ({"rest": "evaluate: {prompts: [{file: b.jsonl}], max_tokens: 4}\n"}, []),
    ],
)
def test_rules_that_need_the_verifier(arguments: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert ids(**arguments) == expected


@pytest.mark.parametrize(
    "path",
    [path for path in FACTS if path.stem not in {"unpinned-revision", *OF_A_CLASS}],
    ids=lambda path: path.stem,
)
def test_locking_a_bad_spec_says_what_to_do(path: Path, root: Path, tmp_path: Path) -> None:
    project = Project(root, tmp_path / "store")
    _, said = project.run("lock", "--dry-run", str(path.relative_to(root)), expect=1)
    assert said == path.with_suffix(".txt").read_text()
    assert not path.with_suffix(".lock.json").exists()


@pytest.mark.parametrize("name", OF_A_CLASS)
def test_what_vllm_cannot_run_there_is_said_before_anything_is_started(name: str, root: Path, tmp_path: Path) -> None:
    project, path = Project(root, tmp_path / "store"), FACTS[0].with_name(f"{name}.yaml").relative_to(root)
    _, said = project.run("plan", "--class", "cpu-avx2", str(path), expect=1)
    assert said == path.with_suffix(".txt").read_text()
    assert "never built here" in project.run("plan", "--class", "cuda", str(path))[0]


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, "{{ bos }}[INST]{% if m.role == 'user' %}", "<assistant>"])
def test_a_template_that_tells_who_speaks_is_good(template: str) -> None:
    assert template_error(template) is None
