"""The shapes in which people keep conversations, each read into the same list of messages.

| keys of a row | known from |
|---|---|
| `messages`: `[{"role", "content"}]` | OpenAI, TRL |
| `conversations`: `[{"from", "value"}]` | ShareGPT |
| `prompt` with `completion` or `response`, strings or lists of messages | TRL, model cards |
| `instruction`, `input`, `output`, `system` | Alpaca; Dolly says `context` and `response` |
| `prompt`, `text` or `question` alone | lists of prompts: one user turn |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from specc.datagen.rows import Message

HINT: Final = (
    'a row is one of `{"messages": [{"role", "content"}, …]}`, `{"conversations": [{"from", "value"}, …]}`,'
    ' `{"prompt", "completion"}`, `{"instruction", "input", "output"}`, `{"prompt"}`'
)

Role = Literal["system", "user", "assistant"]
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TOOLS: Final = ("tool", "function", "function_call", "function_response", "observation")
_ROW_EXTRAS: Final = ("tools", "functions", "images", "videos", "audios", "history")
_MESSAGE_EXTRAS: Final = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


class ShapeError(ValueError):
    """Why a row is no conversation, in a few words without its place."""


def messages_of(row: object) -> list[Message]:
    """Return the messages of a row of any known shape, in the order system? (user assistant)* user?.

    Raises `ShapeError` for an unknown shape, an unknown role, turns out of order, content that is empty or not
    text, and for tools, media and separate reasoning, which would otherwise be lost without a word.
    """
    if not isinstance(row, dict):
        raise ShapeError(f"a row is an object, and this is {_kind(row)}")
    fields: dict[str, Any] = row
    _refuse(fields, _ROW_EXTRAS)
    for key, read in _SHAPES.items():
        if fields.get(key) is not None:
            return _checked(read(fields))
    known = ", ".join(f"`{str(key)[:40]}`" for key in list(fields)[:6])
    raise ShapeError(f"unknown shape with the keys {known}" if known else "the row has no keys")


def _turns(turns: object, key: str) -> list[Message]:
    if not isinstance(turns, list):
        raise ShapeError(f"`{key}` is {_kind(turns)} and no list")
    return [_message(turn, f"{key}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise ShapeError(f"`{where}` is {_kind(turn)} and no object")
    fields: dict[str, Any] = turn
    _refuse(fields, _MESSAGE_EXTRAS)
    role = fields.get("role", fields.get("from"))
    if role in _TOOLS:
        raise ShapeError(f"`{where}` is a tool's turn, and tools are not in this release")
    if not isinstance(role, str) or role not in _ROLES:
        raise ShapeError(f"`{where}` has the unknown role {_quoted(role)}")
    return {"role": _ROLES[role], "content": _text(fields.get("content", fields.get("value")), where)}


def _text(content: object, where: str) -> str:
    if isinstance(content, list):
        # One newline between the parts of a message, as vLLM joins them for templates that take a string.
        content = "\n".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise ShapeError(f"the content of `{where}` is {_kind(content)} and no text")
    if not content.strip():
        raise ShapeError(f"the content of `{where}` is empty")
    return content


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        fields: dict[str, Any] = part
        if fields.get("type", "text") == "text" and isinstance(fields.get("text"), str):
            return fields["text"]
        raise ShapeError(f"`{where}` has a part of type {_quoted(fields.get('type'))}; only text is in this release")
    raise ShapeError(f"`{where}` has a part that is {_kind(part)}")


def _messages(row: Mapping[str, Any]) -> list[Message]:
    return _turns(row["messages"], "messages")


def _conversations(row: Mapping[str, Any]) -> list[Message]:
    return _system(row) + _turns(row["conversations"], "conversations")


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    asked = _text(row["instruction"], "instruction")
    for key in ("input", "context"):
        extra = row.get(key)
        if isinstance(extra, str) and extra.strip():
            asked = f"{asked}\n\n{extra}"
        elif extra is not None and not isinstance(extra, str):
            raise ShapeError(f"the content of `{key}` is {_kind(extra)} and no text")
    return [*_system(row), {"role": "user", "content": asked}, *_answer(row, "output", "response")]


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    prompt = row["prompt"]
    asked: list[Message] = (
        _turns(prompt, "prompt")
        if isinstance(prompt, list)
        else [*_system(row), {"role": "user", "content": _text(prompt, "prompt")}]
    )
    return asked + _answer(row, "completion", "response")


def _plain(key: str) -> Callable[[Mapping[str, Any]], list[Message]]:
    def read(row: Mapping[str, Any]) -> list[Message]:
        return [*_system(row), {"role": "user", "content": _text(row[key], key)}]

    return read


_SHAPES: Final[Mapping[str, Callable[[Mapping[str, Any]], list[Message]]]] = {
    "messages": _messages,
    "conversations": _conversations,
    "instruction": _alpaca,
    "prompt": _prompt,
    "question": _plain("question"),
    "text": _plain("text"),
}
"""The key that tells a shape, and its reader; the first key that a row has decides."""


def _system(row: Mapping[str, Any]) -> list[Message]:
    """Return the turn of a `system` column; an empty cell of it is no turn."""
    text = row.get("system")
    return [{"role": "system", "content": _text(text, "system")}] if text else []


def _answer(row: Mapping[str, Any], *keys: str) -> list[Message]:
    for key in keys:
        answer = row.get(key)
        if isinstance(answer, list):
            return _turns(answer, key)
        if answer is not None:
            return [{"role": "assistant", "content": _text(answer, key)}]
    return []


def _checked(messages: list[Message]) -> list[Message]:
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not spoken:
        raise ShapeError("the conversation has no user turn")
    for index, message in enumerate(spoken):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            number = index + 1 + len(messages) - len(spoken)
            raise ShapeError(f"turn {number} is of the role `{message['role']}`, and `{expected}` was expected")
    return messages


def _refuse(fields: Mapping[str, Any], extras: tuple[str, ...]) -> None:
    for key in extras:
        if fields.get(key):
            raise ShapeError(f"`{key}` is not in this release")


def _quoted(value: object) -> str:
    return f"`{value[:40]}`" if isinstance(value, str) else _kind(value)


def _kind(value: object) -> str:
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
    return names[type(value)]
