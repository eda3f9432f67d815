"""Reading held-out prompts: what is asked of the verifier, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drafts import source
from llava import IMAGES, RUN, TOKEN, data_url, make_llava, picture
from small import CHATML, make_tokenizer
from specc.core.errors import SpeccError
from specc.core.measure.prompts import images_of, text_of
from specc.datagen import template as templates
from specc.datagen.shapes import read_row
from specc.datagen.template import ChatTemplate
from specc.datagen.tokens import load_tokenizer
from specc.evaluate import read_prompts, render
from talks import WEATHER

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(tmp_path: Path, *rows: object, rows_wanted: int | None = None, system: str | None = None) -> list[list[str]]:
    """Return the roles and contents of each prompt read from `rows` (text is a line as it is)."""
    path = tmp_path / "p.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    entry = {**source(path, "p.jsonl"), "rows": rows_wanted}
    found = read_prompts([entry], lambda _: path, system)
    return [[f"{turn['role']}: {turn['content']}" for turn in prompt.messages] for prompt in found]


def test_what_follows_the_last_user_turn_is_what_is_asked_for(tmp_path: Path) -> None:
    found = read(tmp_path, {"messages": [USER, ANSWER, USER, ANSWER]}, {"prompt": "How?"})
    assert found == [["user: Why?", "assistant: Because.", "user: Why?"], ["user: How?"]]


def test_tools_are_what_is_asked_with_and_nothing_is_asked_behind_a_call(tmp_path: Path) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    rows = (
        {"messages": [USER, called, {"role": "tool", "content": "1"}, ANSWER, USER], "tools": [WEATHER]},
        {"prompt": "How?", "tools": json.dumps([WEATHER["function"]])},
        {"prompt": "How?", "tools": []},
    )
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = read_prompts([source(path, "p.jsonl")], lambda _: path, None)
    assert first.messages == (USER,)
    assert first.tools == second.tools == read_row({"messages": [USER], "tools": [WEATHER]}).get("tools"), "as trained"
    assert third.tools is None
    with pytest.raises(SpeccError, match=r"`tools\[0\]` names no function") as caught:
        read(tmp_path, {"prompt": "How?", "tools": [{"description": "x"}]})
    assert str(caught.value.where) == "p.jsonl:1:1"


@pytest.mark.engine
def test_a_prompt_with_tools_is_the_text_that_training_shows(tmp_path: Path, root: Path) -> None:
    make_tokenizer(tmp_path, (root / "tests/datagen/templates/qwen3.jinja").read_text())
    asked = read_row({"messages": [SYSTEM, USER], "tools": [WEATHER]})
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": [SYSTEM, USER], "tools": [WEATHER]}) + "\n")
    (ids,) = render(read_prompts([source(path, "p.jsonl")], lambda _: path, None), tmp_path, "2026-11-23")
    text = templates.render(ChatTemplate.load(tmp_path), asked["messages"], tools=asked.get("tools"),
                            add_generation_prompt=True, date="2026-11-23")  # fmt: skip
    assert load_tokenizer(tmp_path).encode(text, add_special_tokens=False).ids == ids
    assert "The weather of a day." in text


def test_a_system_prompt_goes_where_there_is_none(tmp_path: Path) -> None:
    found = read(tmp_path, {"messages": [SYSTEM, USER]}, {"prompt": "How?"}, system="Be kind.")
    assert found == [["system: Be brief.", "user: Why?"], ["system: Be kind.", "user: How?"]]


def test_rows_are_counted_without_blank_lines(tmp_path: Path) -> None:
    assert read(tmp_path, "", {"prompt": "1"}, "", {"prompt": "2"}, "not read", rows_wanted=2) == [
        ["user: 1"],
        ["user: 2"],
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "a prompt of an unknown form"),
        ({"text": "Hello"}, "a prompt of an unknown form"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a turn needs a `role` and a text as `content`"),
        ({"messages": [{"role": "user", "content": [1]}]}, "a turn needs a `role` and a text as `content`"),
        ({"messages": [SYSTEM, ANSWER]}, "a prompt needs a turn of the user"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpeccError) as caught:
        read(tmp_path, {"prompt": "fine"}, row)
    assert caught.value.message.startswith(message)
    assert str(caught.value.where) == "p.jsonl:2:1"
    assert caught.value.hint


def test_another_file_than_the_locked_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n')
    entry = source(path, "p.jsonl")
    path.write_text('{"prompt": "b"}\n')
    with pytest.raises(SpeccError, match="changed after they were locked"):
        read_prompts([entry], lambda _: path, None)


def test_no_prompt_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeccError, match="holds no prompt"):
        read(tmp_path, "")


def kinds(tmp_path: Path, *rows: object, **source_of: object) -> list[tuple[str, str]]:
    """Return the question and the subset of each prompt."""
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts([{**source(path, "data/question.jsonl"), **source_of}], lambda _: path, None)
    return [(prompt.messages[-1]["content"], prompt.subset) for prompt in found]


ROWS = [{"question_id": number, "category": kind, "turns": [f"{number}?", "And?"]}
        for number, kind in enumerate(["coding", "writing", "coding"])]  # fmt: skip


def test_of_turns_the_first_is_asked_and_a_category_is_a_subset(tmp_path: Path) -> None:
    assert kinds(tmp_path, *ROWS) == [("0?", "coding"), ("1?", "writing"), ("2?", "coding")]
    assert kinds(tmp_path, {"prompt": "Why?"}) == [("Why?", "question")]
    assert kinds(tmp_path, {"prompt": ["Why?", "And?"]}) == [("Why?", "question")]
    assert kinds(tmp_path, *ROWS, subset="mine")[0] == ("0?", "mine")


def test_rows_are_those_of_the_categories(tmp_path: Path) -> None:
    assert kinds(tmp_path, *ROWS, categories=["coding"], rows=1) == [("0?", "coding")]
    assert kinds(tmp_path, *ROWS, categories=["coding"], rows=9) == [("0?", "coding"), ("2?", "coding")]
    with pytest.raises(SpeccError, match="no row is of the categories `poems`") as caught:
        kinds(tmp_path, *ROWS, categories=["poems"])
    assert caught.value.hint == "the categories of its rows: `coding`, `writing`"


def test_a_row_of_speed_bench_without_its_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpeccError, match="is not in the data set") as caught:
        kinds(tmp_path, {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]})
    assert "prepare" in (caught.value.hint or "")


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "test.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    found = read_prompts([{**source(path, "test.parquet"), "categories": ["writing"]}], lambda _: path, None)
    assert [(prompt.messages, prompt.subset, str(prompt.where)) for prompt in found] == [
        (({"role": "user", "content": "1?"},), "writing", "test.parquet:2:1")
    ]
    path.write_bytes(b"PAR1")
    with pytest.raises(SpeccError, match="cannot be read"):
        read_prompts([source(path, "test.parquet")], lambda _: path, None)


RED = data_url(picture())


def ask(*urls: str) -> dict[str, object]:
    parts = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": "Why?"}]
    return {"messages": [{"role": "user", "content": parts}]}


def test_images_stand_in_the_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ask(RED)) + "\n" + json.dumps(ask()) + "\n")
    first, second = read_prompts([source(path, "p.jsonl")], lambda _: path, None)
    assert images_of(first.messages) == [RED]
    assert text_of(first.messages[0]) == "Why?"
    assert second.messages == ({"role": "user", "content": "Why?"},)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a.png", "an image of a prompt is at an address, and nothing is fetched for a row"),
        ("data:image/png;base64,AAAA", "an image of a prompt is no PNG, JPEG or WebP that can be read"),
    ],
)
def test_an_image_that_is_none_is_refused_with_its_line(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpeccError) as caught:
        read(tmp_path, {"prompt": "fine"}, ask(url))
    assert caught.value.message == message
    assert str(caught.value.where) == "p.jsonl:2:1"


@pytest.mark.engine
@pytest.mark.parametrize("template", [IMAGES, CHATML])
def test_a_prompt_with_images_is_what_the_verifier_sees_and_what_vllm_is_asked(template: str, tmp_path: Path) -> None:
    """As `tokens` makes it of a row: the same ids, and the same for both kinds of templates."""
    from specc.datagen.shapes import read_row
    from specc.datagen.template import render as written
    from specc.datagen.tokens import load_tokenizer, template_of
    from specc.datagen.vision import Eyes
    from specc.datagen.vision import images_of as shown

    verifier = make_llava(tmp_path / "llava", template, weights=False)
    tokenizer, rows = load_tokenizer(verifier), [ask(RED, data_url(picture((1, 2, 3), (9, 40)))), ask()]
    ours = template_of(verifier, tokenizer, {"image_token_id": TOKEN}, None)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts([source(path, "p.jsonl")], lambda _: path, None)
    rendered = render(prompts, verifier, "2026-11-23", vision=True)
    for row, found in zip(rows, rendered, strict=True):
        messages = read_row(row, lambda _: {"sha256": "", "width": 40, "height": 30})["messages"]
        text = written(ours, messages, add_generation_prompt=True, date="2026-11-23")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert list(found) == Eyes(verifier, TOKEN).unfolded(ids, shown(messages))[0]
        assert getattr(found, "folded", ids) == ids
    assert rendered[0].count(TOKEN) == 2 * RUN
    with pytest.raises(SpeccError, match="the prompt has an image, and the verifier takes none"):
        render(prompts, verifier, "2026-11-23")
