"""Tools, their calls and their results as people keep them, in the one form that chat templates are given.

| in a row | known from |
|---|---|
| `tools`: `[{"type": "function", "function": {"name", "description", "parameters"}}]`, or its JSON text | OpenAI, TRL |
| `tools` or `functions`: `[{"name", "description", "parameters"}]`, or its JSON text | ShareGPT, xLAM |
| `tool_calls`: `[{"id", "type", "function": {"name", "arguments"}}]`, arguments an object or its JSON text | OpenAI |
| a turn `function_call` whose value is the JSON text of `{"name", "arguments"}`, or of a list of them | ShareGPT |
| `answers`: the same, beside a `query` | xLAM |

vLLM gives a template the arguments as an object, and of a tool those keys that are below, in that order
(`FunctionDefinition` of its server); so does `specc`. Both are kept as JSON text, which keeps the order of keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from specc.datagen.rows import Message, ToolCall

FIRST: Final = "call00001"
"""The first of the ids that calls without one get: nine letters and digits, which is what Mistral's templates take."""


class ShapeError(ValueError):
    """Why a row is no conversation, in a few words without its place."""


def tools_of(value: object, where: str) -> str | None:
    """Return tools as the JSON text of a list in vLLM's form, None if there are none."""
    tools = [_tool(item, f"{where}[{index}]") for index, item in enumerate(_listed(value, where, "tools"))]
    return _text(tools) if tools else None


def calls_of(value: object, where: str) -> list[ToolCall]:
    """Return the calls of a list, of one call, or of the JSON text of either; ids that are missing are empty."""
    return [_call(item, f"{where}[{index}]") for index, item in enumerate(_listed(value, where, "calls"))]


def paired(messages: list[Message]) -> list[Message]:
    """Give calls ids where they have none, and each result the id and the name of the call that it answers.

    Results answer the calls before them in order, save for those that name one. Raises `ShapeError` for a result
    of a call that is not there.
    """
    open_calls, number = list[ToolCall](), 0
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            open_calls = list(message.get("tool_calls", []))
            for call in open_calls:
                call["id"] = call["id"] or f"{FIRST[:-5]}{int(FIRST[-5:]) + number:05d}"
                number += 1
        elif message["role"] == "tool":
            named = message.get("tool_call_id")
            call = next((call for call in open_calls if named in (None, call["id"])), None)
            if call is None:
                raise ShapeError(f"turn {index + 1} is a tool's result, and no call before it waits for one")
            open_calls.remove(call)
            message["tool_call_id"] = call["id"]
            message.setdefault("name", call["function"]["name"])
    return messages


def result_text(value: object) -> object:
    """Return what a tool answered as text if it is an object or a number; parts of text are left to their reader."""
    items: list[Any] = value if isinstance(value, list) else []
    parts = bool(items) and all(isinstance(item, dict) and "type" in item for item in items)
    return value if isinstance(value, str) or parts else "" if value is None else _text(value)


def _listed(value: object, where: str, what: str) -> list[Any]:
    items = _parsed(value, where)
    if not isinstance(items, list | dict):
        raise ShapeError(f"`{where}` is {kind(items)} and no list of {what}")
    return [items] if isinstance(items, dict) else items


def _tool(item: object, where: str) -> dict[str, Any]:
    fields = _object(item, where)
    if fields.get("type", "function") != "function":
        raise ShapeError(f"`{where}` is a tool of type {quoted(fields.get('type'))}, and only functions are known")
    function = _object(fields.get("function", fields), f"{where}.function" if "function" in fields else where)
    name, parameters = _name(function, where), function.get("parameters")
    known: dict[str, Any] = {"name": name, "description": function.get("description"), "parameters": parameters}
    if isinstance(parameters, dict):
        schema: dict[str, Any] = parameters
        if schema and "type" not in schema and all(isinstance(value, dict) for value in schema.values()):
            known["parameters"] = {"type": "object", "properties": schema}  # xLAM lists the parameters alone
    elif parameters is not None:
        raise ShapeError(f"the parameters of `{where}` are {kind(parameters)} and no object")
    if function.get("strict") is not None:
        known["strict"] = function["strict"]
    return {"type": "function", "function": known}


def _call(item: object, where: str) -> ToolCall:
    fields = _object(item, where)
    function = _object(fields.get("function", fields), where)
    arguments = _parsed(function.get("arguments", function.get("parameters")) or {}, f"the arguments of {where}")
    if not isinstance(arguments, dict):
        raise ShapeError(f"the arguments of `{where}` are {kind(arguments)} and no object")
    identity = fields.get("id")
    return {
        "id": identity if isinstance(identity, str) else "",
        "type": "function",
        "function": {"name": _name(function, where), "arguments": _text(arguments)},
    }


def _name(function: Mapping[str, Any], where: str) -> str:
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ShapeError(f"`{where}` names no function")
    return name


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShapeError(f"`{where}` is {kind(value)} and no object")
    return value


def _parsed(value: object, where: str) -> object:
    """Return the value of JSON text, and what is no text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse) if value.strip() else []
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"`{where}` is text and no JSON") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _text(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ShapeError("infinity and not-a-number are no JSON") from error


def quoted(value: object) -> str:
    """Return a text between backticks, and of anything else its kind."""
    return f"`{value[:40]}`" if isinstance(value, str) else kind(value)


def kind(value: object) -> str:
    """Return what a value of JSON is, for people."""
    if value is None:
        return "null"
    names: dict[type, str] = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")
