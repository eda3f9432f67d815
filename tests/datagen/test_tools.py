"""Tools, calls, results, thoughts and rows of tokens: as people keep them, read into one form."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small import make_tokenizer
from specc.core.files import canonical
from specc.datagen.responses import count
from specc.datagen.rows import Row, Said, canonical_text, identity
from specc.datagen.shapes import ShapeError, read_row, shape_of
from specc.datagen.talks import Asker, Talk, in_channels
from specc.datagen.template import ChatTemplate, render
from specc.datagen.tools import calls_of, tools_of
from talks import SPECIALS, WEATHER, call, result

ASKED = {"role": "user", "content": "Rain?"}
SAID = {"role": "assistant", "content": "Yes."}
BARE = WEATHER["function"]
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
ANSWERED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "call00001", "name": "weather"},
    {"role": "assistant", "content": "Yes."},
]
ARGUMENTS = {"name": "weather", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, call("Paris"), result("rain"), SAID], "tools": [WEATHER]},
        {"messages": [ASKED, call("Paris"), result("rain"), SAID], "tools": json.dumps([WEATHER])},
        {"messages": [ASKED, {"role": "assistant", "function_call": ARGUMENTS},
                      {"role": "function", "name": "weather", "content": "rain"}, SAID], "functions": [BARE]},
        {"conversations": [{"from": "human", "value": "Rain?"},
                           {"from": "function_call", "value": json.dumps(ARGUMENTS)},
                           {"from": "observation", "value": "rain"}, {"from": "gpt", "value": "Yes."}],
         "tools": json.dumps([BARE])},
        {"prompt": [ASKED], "completion": [call("Paris"), result([{"type": "text", "text": "rain"}]), SAID],
         "tools": [BARE]},
    ],
    ids=["openai", "tools as text", "openai, older", "sharegpt", "trl"],
)  # fmt: skip
def test_one_form_of_many(row: dict[str, Any]) -> None:
    said = read_row(row)
    assert said == {"messages": ANSWERED, "tools": json.dumps([WEATHER])}
    assert json.loads(canonical_text(said)) == said


def test_xlam() -> None:
    tool = {"name": "rate", "description": "A rate.", "parameters": {"base": {"type": "str", "default": "EUR"}}}
    row = {"id": 7, "query": "What?", "tools": json.dumps([tool]),
           "answers": json.dumps([{"name": "rate", "arguments": {"base": "é"}}])}  # fmt: skip
    said = read_row(row)
    (spoken,) = json.loads(said.get("tools", ""))
    assert spoken["function"]["parameters"] == {"type": "object", "properties": tool["parameters"]}
    assert said["messages"][1].get("tool_calls", [])[0]["function"]["arguments"] == '{"base": "é"}'
    assert shape_of(row) == "query"
    assert read_row({"query": "What?"}) == {"messages": [{"role": "user", "content": "What?"}]}


def test_the_order_of_keys_is_what_a_template_shows() -> None:
    asks = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"z": 1, "a": [2.50]}'}]}
    row = {"messages": [ASKED, asks],
           "tools": [{"name": "f", "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}]}  # fmt: skip
    said = json.loads(canonical_text(read_row(row)))
    source = "{{ messages[1].tool_calls[0].function.arguments | tojson }}{{ tools[0].function | tojson }}"
    shown = render(
        ChatTemplate.parse(source),
        said["messages"],
        tools=said["tools"],
        add_generation_prompt=False,
        date="2026-01-02",
    )
    assert shown == (
        '{"z": 1, "a": [2.5]}{"name": "f", "description": null, "parameters": {"type": "object", "properties": '
        '{"z": {}, "a": {}}}}'
    )


def test_words_and_a_call_are_one_turn() -> None:
    turns = [{"from": "human", "value": "Rain?"}, {"from": "gpt", "value": "Let me look."},
             {"from": "function_call", "value": json.dumps([ARGUMENTS, ARGUMENTS])}]  # fmt: skip
    _, said = read_row({"conversations": turns})["messages"]
    assert said["content"] == "Let me look."
    assert [item["id"] for item in said.get("tool_calls", [])] == ["call00001", "call00002"]


def test_results_find_their_calls() -> None:
    two = call("Paris", "Lyon")
    two["tool_calls"][0]["id"], two["tool_calls"][1]["id"] = "a", "b"
    messages = [ASKED, two, {**result("sun"), "tool_call_id": "b"}, result({"rain": True}), SAID]
    read = read_row({"messages": messages})["messages"]
    assert [(item["content"], item.get("tool_call_id")) for item in read[2:4]] == [
        ("sun", "b"),
        ('{"rain": true}', "a"),
    ]


def test_what_was_thought() -> None:
    for key in ("reasoning_content", "reasoning", "thinking"):
        said = read_row({"messages": [ASKED, {**SAID, key: "Clouds."}]})
        assert said["messages"][1] == {**SAID, "reasoning_content": "Clouds."}
    assert read_row({"messages": [ASKED, {**SAID, "reasoning": ""}]})["messages"][1] == SAID
    assert read_row({"messages": [{**ASKED, "thinking": "no"}, SAID]})["messages"][0] == ASKED


TOKENS: Said = {"messages": [], "input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]}


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [5, 6, 7], "loss_mask": [0, 1, 1]},
        {"input_ids": [5, 6, 7], "assistant_masks": [False, True, True], "text": "not read"},
        {"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [0, 5, 6, 7], "completion_mask": [1, 0, 1, 1], "attention_mask": [0, 1, 1, 1]},
    ],
)
def test_tokens_that_were_made_elsewhere(row: dict[str, Any]) -> None:
    assert read_row(row) == TOKENS
    assert shape_of(row) == "input_ids"


REFUSED = [
    ({"input_ids": [1]}, "`input_ids` without a mask: `loss_mask`, `assistant_masks`, `assistant_mask`,"
     " `completion_mask`, `labels`"),
    ({"input_ids": [1, 2], "loss_mask": [1]}, "`input_ids` has 2 tokens, and `loss_mask` 1"),
    ({"input_ids": [1, 2], "labels": [-100, 3]}, "`labels` are the tokens themselves, not shifted, or -100"),
    ({"input_ids": [1, 2], "loss_mask": [0, 2]},
     "`input_ids` are whole numbers from 0, at least one, and `loss_mask` is 0 or 1 for each"),
    ({"input_ids": [1.5], "loss_mask": [1]}, "`input_ids` has a value that is no whole number"),
    ({"input_ids": "1", "loss_mask": [1]}, "`input_ids` is text and no list"),
    ({"messages": [ASKED, {**SAID, "tool_calls": "no"}]}, "`messages[1].tool_calls` is text and no JSON"),
    ({"messages": [ASKED, {**SAID, "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
     "the arguments of `messages[1].tool_calls[0]` are a list and no object"),
    ({"messages": [ASKED, {**SAID, "tool_calls": [{"name": "f", "arguments": {"x": float("nan")}}]}]},
     "infinity and not-a-number are no JSON"),
    ({"messages": [{**ASKED, "tool_calls": [{"name": "f"}]}]}, "`messages[0]` calls tools, and only an assistant does"),
    ({"messages": [ASKED, {**SAID, "reasoning": ["no"]}]}, "what `messages[1]` thought is a list and no text"),
    ({"messages": [ASKED, call("Paris"), result("a"), result("b")]},
     "turn 4 is a tool's result, and no call before it waits for one"),
    ({"messages": [ASKED, SAID, result("a")]}, "turn 3 is a tool's result, and the turn before it has no `tool_calls`"),
    ({"messages": [ASKED], "tools": "no"}, "`tools` is text and no JSON"),
    ({"messages": [ASKED], "tools": [{"type": "retrieval"}]},
     "`tools[0]` is a tool of type `retrieval`, and only functions are known"),
    ({"messages": [ASKED], "tools": [{"name": "f", "parameters": []}]},
     "the parameters of `tools[0]` are a list and no object"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "[]"}]},
     "`conversations[1]` calls no tool"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_refused(row: object, message: str) -> None:
    with pytest.raises(ShapeError) as raised:
        read_row(row)
    assert str(raised.value) == message


def test_what_has_no_tools_has_the_name_it_always_had() -> None:
    plain = read_row({"messages": [ASKED, SAID], "tools": []})
    assert plain == {"messages": [ASKED, SAID]}
    assert identity(plain) == hashlib.sha256(canonical([ASKED, SAID])).hexdigest()
    assert (
        len({identity(said) for said in (plain, read_row({"messages": [ASKED, SAID], "tools": [WEATHER]}), TOKENS)})
        == 3
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aé\n\"", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(st.text("abcé", min_size=1, max_size=4), json_values, max_size=4))
def test_arguments_as_an_object_and_as_text_are_one(arguments: dict[str, Any]) -> None:
    (one,) = calls_of({"name": "f", "arguments": arguments}, "x")
    (other,) = calls_of([{"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}], "x")
    assert one == other
    assert list(json.loads(one["function"]["arguments"]).items()) == list(arguments.items())
    parsed = json.loads(tools_of([{"name": "f", "parameters": {"type": "object", "properties": arguments}}], "x") or "")
    assert parsed[0]["function"]["parameters"]["properties"] == arguments


@settings(max_examples=60, deadline=None)
@given(st.recursive(json_values, lambda inner: st.fixed_dictionaries({}, optional={
    "messages": inner, "role": st.sampled_from(["user", "assistant", "tool", "function_call"]), "content": inner,
    "tool_calls": inner, "tools": inner, "input_ids": inner, "labels": inner, "query": inner, "answers": inner,
    "function": inner, "name": inner, "arguments": inner}) | st.lists(inner, max_size=3), max_leaves=12))  # fmt: skip
def test_any_row_is_read_or_refused(row: object) -> None:
    try:
        said = read_row(row)
    except ShapeError:
        return
    assert said["messages"] or said.get("input_ids")
    assert json.loads(canonical_text(said)) == said


def make_row(said: Said) -> Row:
    return {"id": "", "row": 0, "split": "train", "source": "p.jsonl", "line": 1, **said}


def test_the_verifier_is_asked_up_to_what_a_tool_answered() -> None:
    again = {"role": "user", "content": "And in Lyon?"}
    row = make_row(
        read_row({"messages": [ASKED, SAID, again, call("Lyon"), result("sun"), SAID, again], "tools": [WEATHER]})
    )
    talk = Talk.of(row)
    assert talk.asked == [ASKED, again]
    answered: Row = {**row, "messages": [ASKED, SAID, again, SAID]}  # type: ignore[typeddict-item]
    assert count([row], [answered])["shortened"] == 1
    assert Talk.of(make_row(TOKENS)).asked == []


@pytest.mark.parametrize("name", SPECIALS)
def test_only_answers_in_channels_keep_their_special_tokens(name: str) -> None:
    specials = SPECIALS[name]
    source = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text()
    template = ChatTemplate.parse(source, {"bos_token": specials[1], "eos_token": specials[2]})
    assert in_channels(template, specials, "2026-01-02") == (name == "gpt-oss")


def test_tools_stand_in_the_prompt_that_is_answered(tmp_path: Path) -> None:
    made = make_tokenizer(tmp_path, (Path(__file__).parent / "templates" / "qwen2.5.jinja").read_text())
    params = {"data": {"responses": {}, "sequence_length": 512}, "date": "2026-01-02",
              "verifier": {"config": {"eos_token_ids": [2]}}}  # fmt: skip
    row = make_row(read_row({"messages": [ASKED, call("Paris"), result("rain"), SAID], "tools": [WEATHER]}))
    talk = Talk.of(row)
    prompt = Asker(tmp_path, params).prompt(talk, talk.next_prompt())
    text = made.decode(prompt or [], skip_special_tokens=False)
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>" in text
    assert text.endswith("<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n")
