"""`specc show SPEC --tokens N`: the spec's rows as the stage `tokens` makes them, before anything is built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from projects import SPEC, Project, make_project
from specc.core.cli import rows
from specc.core.compiler import compile_spec
from specc.core.errors import SpeccError

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Name a\tbread."},
                  {"role": "assistant", "content": "Rye\x1b[31m.\n\nOr oat."}]},
    {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "It grows."}]},
    {"messages": [{"role": "user", "content": "Rain?"}], "tools": [{"name": "weather"}]},
    {"prompt": ""},
    {"input_ids": [1, 72, 73, 2, 74], "labels": [-100, -100, -100, 2, 74], "attention_mask": [1, 1, 1, 1, 1]},
    {"prompt": "Nobody answers."},
    {"prompt": "Count.", "completion": "one two three four " * 99},
]  # fmt: skip
SHOWN = """\
prompts.jsonl: the first 7 rows, of the shapes `conversations` 1, `input_ids` 1, `messages` 1, \
`messages with tools` 1, `prompt` 2
  {tokens} tokens of which {trained} are trained ({share} %)
  1 row cut at `data.sequence_length` (512)
  2 rows left out: `no_answer` 2
  1 row that cannot be read
    line 4: the content of `prompt` is empty

prompts.jsonl:1  {first}
  <|im_start|>user
  Name a  bread.<|im_end|>
  <|im_start|>assistant
  ⟦Rye\ufffd[31m.

  Or oat.<|im_end|>⟧

prompts.jsonl:2  {second}
  <|im_start|>user
  Why?<|im_end|>
  <|im_start|>assistant
  ⟦It grows.<|im_end|>⟧

prompts.jsonl:3  left out: `no_answer`
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path / "project")
    (made.folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made


def counts(item: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": item["tokens"], "trained": item["trained_tokens"],
            "share": round(100 * item["trained_tokens"] / item["tokens"])}  # fmt: skip


def test_rows_before_anything_is_built(project: Project) -> None:
    found = json.loads(project.run("show", "tiny.yaml", "--tokens", "7", "--json")[0])
    (source,) = found["sources"]
    assert [row["line"] for row in found["rows"]] == [1, 2, 3, 5, 6, 7]
    said = "{tokens} tokens of which {trained} are trained ({share} %)"
    first, second = (said.format(**counts(row)) for row in found["rows"][:2])
    expected = SHOWN.format(first=first, second=second, **counts(source))
    assert project.run("show", "tiny.yaml", "--tokens", "3")[0] == expected
    trained = ["".join(piece["text"] for piece in row["pieces"] if piece["trained"]) for row in found["rows"]]
    assert trained[1:4] == ["It grows.<|im_end|>", "", "<|im_end|>" + bytes([74 - 3 + 33]).decode()]
    assert not any(project.store.glob("*-tokens-*")), "nothing is built"


def test_the_counts_are_those_of_the_stage(project: Project) -> None:
    path = project.folder / "prompts.jsonl"
    path.write_text("".join(line for at, line in enumerate(path.read_text().splitlines(keepends=True)) if at != 3))
    before = project.run("show", "tiny.yaml", "--tokens", "2", "--json")[0]
    project.build("tokens")
    (index,) = project.store.glob("*-tokens-*/index.json")
    built: dict[str, Any] = json.loads(index.read_bytes())
    (source,) = json.loads(before)["sources"]
    assert all(source[name] == built[name] for name in ("tokens", "trained_tokens", "cut", "left_out"))
    assert project.run("show", "tiny.yaml", "--tokens", "2", "--json")[0] == before, "with the artifact of `verifier`"


def test_one_row(project: Project) -> None:
    shown = project.run("show", "tiny.yaml", "--row", "2", "--source", "prompts.jsonl")[0]
    assert shown.splitlines()[0].startswith("prompts.jsonl:2  ")
    assert "It grows" in shown
    assert "Rye" not in shown
    bad = "prompts.jsonl: line 4\n  1 row that cannot be read\n    line 4: the content of `prompt` is empty\n"
    assert project.run("show", "tiny.yaml", "--row", "4")[0] == bad
    assert project.run("show", "tiny.yaml", "--row", "99")[0] == "prompts.jsonl: no row on line 99\n"


def test_prompts_that_the_verifier_will_answer(project: Project) -> None:
    spec = SPEC.replace("from: data", "from: verifier, max_tokens: 64")
    (project.folder / "tiny.yaml").write_text(spec)
    shown = project.run("show", "tiny.yaml", "--tokens", "7")[0]
    assert "⟦" not in shown
    assert "\n\nprompts.jsonl:6  " in shown
    assert "Nobody answers.<|im_end|>\n  <|im_start|>assistant\n" in shown
    assert "prompts.jsonl:5  left out: `no_answer` (its tokens are given, and nothing asks for an answer)\n" in shown
    assert shown.endswith(
        "hint: `specc build tiny.yaml --stage responses` makes the answers, which are shown here then\n"
    )


def test_sources_take_turns(project: Project) -> None:
    (project.folder / "more.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (project.folder / "tiny.yaml").write_text(
        SPEC.replace("[{file: prompts.jsonl}]", "[{file: prompts.jsonl}, {file: more.jsonl}]")
    )
    found = json.loads(project.run("show", "tiny.yaml", "--tokens", "3", "--json")[0])
    assert [(row["source"], row["line"]) for row in found["rows"]] == [
        ("prompts.jsonl", 1), ("more.jsonl", 1), ("prompts.jsonl", 2)
    ]  # fmt: skip
    only = json.loads(project.run("show", "tiny.yaml", "--tokens", "3", "--source", "more.jsonl", "--json")[0])
    assert [source["source"] for source in only["sources"]] == ["more.jsonl"]


def test_refusals(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    said = project.run("show", "tiny.yaml", "--tokens", "2", "--source", "other.jsonl", expect=2)[1]
    assert said == "error: the spec has no data source `other.jsonl`\n\nhint: its sources are `prompts.jsonl`\n"
    for arguments in (("3c1f2a9d", "--tokens", "2"), ("tiny.yaml", "--tokens", "2", "--format", "svg")):
        assert "`--tokens` shows rows of a spec's data" in project.run("show", *arguments, expect=2)[1]
    (project.folder / "tiny/chat_template.jinja").write_text("{# assistant, role #}\n{% for %}")
    said = project.run("show", "tiny.yaml", "--tokens", "2", expect=3)[1]
    assert said.startswith("error: chat template, line 2: the chat template cannot be compiled")
    monkeypatch.setattr(rows, "installed", dict.fromkeys)
    said = project.run("show", "tiny.yaml", "--tokens", "2", expect=3)[1]
    assert said.startswith("error: rows are tokenised with `tokenizers`, and it is not installed\n\nhint: `pip install")


def test_what_is_trained_is_in_colour_on_a_terminal() -> None:
    pieces = [{"text": "Why?\n", "trained": False}, {"text": "It\n\ngrows.", "trained": True}]
    plain, coloured = rows._text(pieces, terminal=False), rows._text(pieces, terminal=True)
    assert plain == "Why?\n⟦It\n\ngrows.⟧"
    assert coloured == "Why?\n\x1b[32mIt\x1b[0m\n\n\x1b[32mgrows.\x1b[0m"
    assert click.unstyle(coloured) == plain.translate({ord("⟦"): None, ord("⟧"): None})


def test_a_hubs_verifier_must_have_been_fetched(project: Project) -> None:
    compiled = compile_spec(project.folder / "tiny.yaml")
    verifier = {**compiled.values["verifier"], "revision": "0" * 40}
    elsewhere = replace(compiled, values={**compiled.values, "verifier": verifier})
    with pytest.raises(SpeccError, match="the verifier's tokenizer is not on this machine") as raised:
        rows._preview(elsewhere, {})
    assert raised.value.hint == f"`specc build {compiled.path} --stage verifier` fetches it"
