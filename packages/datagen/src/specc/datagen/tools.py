"""Calls of tools and their results as people keep them, in the one form that chat templates are given.

| in a row | known from |
|---|---|
| `tools` or `functions` | `specc.core.tools` |
| `tool_calls`: `[{"id", "type", "function": {"name", "arguments"}}]`, arguments an object or its JSON text | OpenAI |
| a turn `function_call` whose value is the JSON text of `{"name", "arguments"}`, or of a list of them | ShareGPT |
| `answers`: the same, beside a `query` | xLAM |

vLLM gives a template the arguments as an object; so does `specc`. They are kept as JSON text, which keeps the order of
keys.
"""

from __future__ import annotations

from typing import Any, Final

from specc.core.tools import ShapeError, kind, listed, name_of, object_of, parsed, quoted, text_of, tools_of
from specc.datagen.rows import Message, ToolCall

__all__ = ["ShapeError", "calls_of", "kind", "paired", "quoted", "result_text", "tools_of"]

FIRST: Final = "call00001"
"""The first of the ids that calls without one get: nine letters and digits, which is what Mistral's templates take."""


def calls_of(value: object, where: str) -> list[ToolCall]:
    """Return the calls of a list, of one call, or of the JSON text of either; ids that are missing are empty."""
    return [_call(item, f"{where}[{index}]") for index, item in enumerate(listed(value, where, "calls"))]


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
    return value if isinstance(value, str) or parts else "" if value is None else text_of(value)


def _call(item: object, where: str) -> ToolCall:
    fields = object_of(item, where)
    function = object_of(fields.get("function", fields), where)
    arguments = parsed(function.get("arguments", function.get("parameters")) or {}, f"the arguments of {where}")
    if not isinstance(arguments, dict):
        raise ShapeError(f"the arguments of `{where}` are {kind(arguments)} and no object")
    identity = fields.get("id")
    return {
        "id": identity if isinstance(identity, str) else "",
        "type": "function",
        "function": {"name": name_of(function, where), "arguments": text_of(arguments)},
    }
