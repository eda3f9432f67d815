"""Rows whose calls stand in the text: what is a call, what a result, and what is left of the system turn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specc.datagen.shapes import ShapeError, read_row
from talks import WEATHER

TOOL = WEATHER["function"]
TOOL_PROMPT = f"You call functions. <tools>\n{json.dumps([WEATHER])}\n</tools> Use <tool_call>\n{{…}}\n</tool_call>."
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>\n'
RESULT = '<tool_response>\n{"name": "weather", "content": {"rain": %s}}\n</tool_response>\n'


def hermes(*turns: tuple[str, str], tools: Any = None) -> dict[str, Any]:
    return {"tagged": [{"from": role, "value": text} for role, text in turns], **({"tools": tools} if tools else {})}


def glaive(chat: str, system: str = "SYSTEM: You are a helpful assistant.\n\n") -> dict[str, Any]:
    return {"system": system, "transcript": chat}


def brief(row: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Return role, content and arguments of the calls of each turn."""
    return [(message["role"], message["content"],
             [call["function"]["arguments"] for call in message.get("tool_calls", [])])
            for message in read_row(row)["messages"]]  # fmt: skip


def test_hermes_marks_are_calls_and_results_in_order() -> None:
    row = hermes(
        ("system", TOOL_PROMPT),
        ("human", "Rain in Paris and Lyon?"),
        ("gpt", "Let me look.\n" + CALL % "Paris" + CALL % "Lyon"),
        ("tool", RESULT % "true" + RESULT % "false"),
        ("gpt", "In Paris."),
        tools=json.dumps([WEATHER]),
    )
    assert brief(row) == [
        ("user", "Rain in Paris and Lyon?", []),
        ("assistant", "Let me look.", ['{"city": "Paris"}', '{"city": "Lyon"}']),
        ("tool", '{"rain": true}', []),
        ("tool", '{"rain": false}', []),
        ("assistant", "In Paris.", []),
    ]
    said = read_row(row)
    assert json.loads(said.get("tools", ""))[0]["function"]["name"] == "weather"
    assert [message.get("name") for message in said["messages"][2:4]] == ["weather", "weather"]


def test_of_hermes_only_the_system_turn_that_lists_the_tools_is_left_out() -> None:
    turns = (("human", "Rain?"), ("gpt", CALL % "Paris"))
    assert brief(hermes(("system", "Be brief."), *turns, tools=[WEATHER]))[0] == ("system", "Be brief.", [])
    assert brief(hermes(("system", TOOL_PROMPT), *turns))[0][0] == "system"  # the tools are nowhere else
    assert brief(hermes(("human", "What is <tool_call>?"), ("gpt", "<tool_call> begins a call.")))[1] == (
        "assistant", "<tool_call> begins a call.", [])  # fmt: skip


def test_a_glaive_transcript_is_turns_calls_and_results() -> None:
    called = '<functioncall> {"name": "weather", "arguments": %s} <|endoftext|>'
    turns = (
        "USER: Rain in Paris?", "ASSISTANT: " + called % "'{\"city\": \"L\\'Ha\\u00ff\"}'",
        'FUNCTION RESPONSE: {"rain": true}', "ASSISTANT: It rains. <|endoftext|>",
        "USER: Thanks!\nUSER of words", "ASSISTANT: " + called % "{}",
    )  # fmt: skip
    chat = "\n\n\n".join(turns)
    tools = f"{json.dumps(TOOL, indent=4)}\n\n{json.dumps(TOOL)}\n\n"
    listed = f"SYSTEM: You have functions. Use them if required -\n{tools}"
    assert brief(glaive(chat, listed)) == [
        ("user", "Rain in Paris?", []),
        ("assistant", "", ['{"city": "L\'Haÿ"}']),
        ("tool", '{"rain": true}', []),
        ("assistant", "It rains.", []),
        ("user", "Thanks!\nUSER of words", []),
        ("assistant", "", ["{}"]),
    ]
    assert len(json.loads(read_row(glaive(chat, listed)).get("tools", ""))) == 2
    plain = read_row(glaive("USER: Hi\n\n\nASSISTANT: Hello! <|endoftext|>"))
    assert [message["content"] for message in plain["messages"]] == ["You are a helpful assistant.", "Hi", "Hello!"]
    assert "tools" not in plain


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (hermes(("human", "a"), ("gpt", "<tool_call>{'name': 'f'}</tool_call>")), "a call in tagged[1] is no JSON"),
        (hermes(("human", "a"), ("tool", "{}")), "is a tool's result"),
        ({"tagged": {"a": 1}}, "`tagged` is an object and no list"),
        ({"tagged": ["a"]}, "`tagged[0]` is no turn with a text"),
        ({"transcript": 1}, "`transcript` is a number and no text"),
        (glaive("Hello"), "does not begin with `USER:`"),
        (glaive("USER: a\nASSISTANT: <functioncall> {no}"), "a call in turn 2 of `transcript` is no JSON"),
        (glaive("USER: a", "SYSTEM: functions -\n{no}"), "`system` lists a tool that is no JSON"),
        (glaive("ASSISTANT: a"), "`user` was expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ShapeError) as raised:
        read_row(row)
    assert why in str(raised.value)
