"""What an editor shows when the mouse rests on a word."""

from __future__ import annotations

import json

import pytest

from editor.client import LanguageServer
from specc.core.language import build_schema
from specc.core.language.schema import fields

SOURCE = "\n\nSource: [speculator.v1.schema.json]"


def shown(server: LanguageServer, text: str) -> str:
    """Return what is shown, without its last line, which names the schema."""
    hover, _, source = server.hover(server.type(text)).partition(SOURCE)
    assert source.endswith("/schema/speculator.v1.schema.json)"), hover
    return hover


@pytest.mark.parametrize(("text", "words"), [
    ("train:\n  se|ed: 7", "Seed of the initial weights and of the order of the data. Default: `42`."),
    ("data:\n  shard_|rows: 64", "Number of conversations in a shard, the unit of work that survives an interruption."
                                 " Default: `256`."),
    ("train:\n  optimizer: {learning_r|ate: 1e-3}", "Learning rate after the warm-up. Default: `0.0001`."),
    ("train:\n  gradient_clip|ping: null", "Largest norm of the gradient; `null` does not clip. Default: `1.0`."),
    ("train:\n  schedule:\n    war|mup: 20",
     "Length of the linear warm-up: a share of all steps if below 1, otherwise a number of steps. Default: `0.01`."),
    ("draft:\n  algorithm: eagle3\n  vocab|ulary: full",
     "Number of tokens the draft can propose: the most frequent of the training data. `full` keeps the verifier's"
     " vocabulary. Default: 32000, or `full` if the verifier has no more."),
    ("train:\n  loss: {k|l: 1}", "Weight of KL(verifier || draft) over the draft's vocabulary."),
    ("ver|sion: 1", "Version of the language; this page describes version 1."),
])  # fmt: skip
def test_a_key_says_what_it_is_in_which_unit_and_its_default(server: LanguageServer, text: str, words: str) -> None:
    assert shown(server, text) == words


def test_a_choice_lists_what_can_stand_there(server: LanguageServer) -> None:
    assert shown(server, "verifier:\n  dty|pe: float32").splitlines() == [
        "Numeric type that the verifier runs in. Default: `bfloat16`.", "",
        "Allowed Values:", "", "* `float32`", "* `bfloat16`", "* `float16`",
    ]  # fmt: skip


def test_a_section_says_what_it_is_for_its_algorithm(server: LanguageServer) -> None:
    assert shown(server, "dra|ft:\n  algorithm: eagle3").startswith("EAGLE-3: a small decoder")


@pytest.mark.parametrize("section", ["train", "data", "runtime", "export", "checks"])
def test_every_default_of_a_section_is_shown(server: LanguageServer, section: str) -> None:
    """Each field is written with its own default, and shows it."""
    for path, (rule, _) in fields(build_schema()).items():
        head, _, name = path.partition(".")
        if head == section and name and "." not in name and "default" in rule:
            value = rule["default"]
            text = value if isinstance(value, str) else json.dumps(value)
            assert f"Default: `{text}`." in shown(server, f"{section}:\n  {name[0]}|{name[1:]}: {text}"), path
