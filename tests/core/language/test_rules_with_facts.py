from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specc.core.language import Document, rules_with_facts
from specc.core.language.check import check_document

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 30, "vocab_size": 49152, "intermediate_size": 1536, "max_position_embeddings": 8192,
}  # fmt: skip
HEAD = "version: 1\nname: x\nverifier: {model: org/verifier}\n"
DATA = "data:\n  sources: [{file: a.jsonl}]\n"


def ids(draft: str = "", data: str = "", rest: str = "", **config: int) -> list[tuple[str | None, str]]:
    text = f"{HEAD}draft: {{algorithm: eagle3{draft}}}\n{DATA}{data}{rest}"
    checked = check_document(Document.parse(text, "s.yaml"))
    return [(error.id, str(error.where)) for error in rules_with_facts(checked, CONFIG | config)]


def test_the_default_spec_fits_the_quickstart_s_verifier(root: Path) -> None:
    assert ids() == []
    quickstart = check_document(Document.read(root / "specs" / "quickstart.yaml"))
    assert rules_with_facts(quickstart, CONFIG) == []


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
    ],
)
def test_rules_that_need_the_verifier(arguments: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert ids(**arguments) == expected
