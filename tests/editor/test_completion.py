"""What an editor proposes while a spec is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from editor.client import LanguageServer
from small import write_prompts
from specc.core.algorithms import ALGORITHMS
from specc.core.cli import main
from specc.core.language import Document
from specc.core.language.models import Spec

KEY, SNIPPET = 10, 15


def test_an_empty_file_is_offered_every_section_and_a_spec_to_start_from(server: LanguageServer) -> None:
    proposed = server.complete(server.type("|"))
    assert {name for name, item in proposed.items() if item.kind == KEY} >= set(Spec.model_fields)
    assert [name for name, item in proposed.items() if item.kind != KEY] == ["speculator"]
    assert proposed["version"].text == "version: 1"
    assert all(item.documentation for item in proposed.values())


def test_the_spec_to_start_from_passes_check_as_it_is(server: LanguageServer, tmp_path: Path) -> None:
    snippet = server.complete(server.type("|"))["speculator"]
    assert snippet.kind == SNIPPET
    write_prompts(tmp_path / "prompts" / "train.jsonl", 3)
    text = re.sub(r"\$\{\d+:([^}]*)\}", r"\1", snippet.text)
    path = tmp_path / "typed.yaml"
    path.write_text(text)
    assert main(["check", str(path)]) == 0
    assert list(Document.read(path).data) == ["version", "name", "verifier", "draft", "data"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_keys_of_a_draft_are_those_of_its_algorithm(server: LanguageServer, algorithm: str) -> None:
    proposed = server.complete(server.type(f"draft:\n  algorithm: {algorithm}\n  |"))

    def fields(name: str) -> list[str]:
        known = ALGORITHMS[name].section.model_fields.items()
        return [field.alias or key for key, field in known if key != "algorithm"]

    own = fields(algorithm)
    assert [name for name in proposed if name in own] == own
    # To complete, the server takes a whole word for the beginning of another, too: `dflash` for `dflash2`.
    longer = [name for name in ALGORITHMS if name != algorithm and name.startswith(algorithm)]
    assert set(proposed) - set(own) <= {key for name in longer for key in fields(name)}


def test_a_key_is_inserted_with_its_default_and_said_with_it(server: LanguageServer) -> None:
    proposed = server.complete(server.type("draft:\n  algorithm: eagle3\n  |"))
    assert proposed["layers"].text == "layers: ${1:1}"
    assert proposed["layers"].documentation == "Number of decoder layers of the draft. Default: `1`."


def test_the_keys_of_an_optimizer_are_its_own(server: LanguageServer) -> None:
    adamw = server.complete(server.type("train:\n  optimizer:\n    name: adamw\n    |"))
    muon = server.complete(server.type("train:\n  optimizer:\n    name: muon\n    |"))
    unnamed = server.complete(server.type("train:\n  optimizer:\n    |"))
    assert "learning_rate" in adamw
    assert set(muon) - set(adamw) == {"momentum"}
    assert set(unnamed) - set(adamw) == {"name"}


def test_a_matrix_is_offered_the_fields_that_can_vary(server: LanguageServer) -> None:
    proposed = server.complete(server.type("matrix:\n  |"))
    assert {"include", "exclude", "draft.layers", "train.optimizer.learning_rate"} <= set(proposed)
    assert not [name for name in proposed if name.startswith("runtime")]


def test_a_section_that_is_inserted_has_only_what_it_must_have(server: LanguageServer) -> None:
    proposed = server.complete(server.type("|"))
    assert proposed["train"].text == "train:\n  "
    assert server.complete(server.type("data:\n  |"))["sources"].text == "sources:\n  - "


@pytest.mark.parametrize(("text", "values"), [
    ("draft:\n  algorithm: |", list(ALGORITHMS)),
    ("verifier:\n  dtype: |", ["bfloat16", "float16", "float32"]),
    ("train:\n  precision: |", ["bf16", "fp32"]),
    ("train:\n  optimizer:\n    name: |", ["adamw", "muon"]),
    ("train:\n  optimizer: {name: |}", ["adamw", "muon"]),
    ("train:\n  loss: |", ["kl", "rkl", "jsd", "ce", "tv", "nla", "lk", "null"]),
    ("checks:\n  lossless: |", ["false", "true"]),
])  # fmt: skip
def test_values_are_those_that_the_field_takes(server: LanguageServer, text: str, values: list[str]) -> None:
    proposed = server.complete(server.type(text))
    assert [name for name, item in proposed.items() if item.text == name] == values
