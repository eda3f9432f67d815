"""The shapes in which people keep conversations, each read into the same list of messages.

| keys of a row | known from |
|---|---|
| `messages`: `[{"role", "content"}]` | OpenAI, TRL |
| `conversations`: `[{"from", "value"}]` | ShareGPT |
| `prompt` with `completion` or `response`, strings or lists of messages | TRL, model cards |
| `instruction`, `input`, `output`, `system` | Alpaca; Dolly says `context` and `response` |
| `query`, `answers`, `tools` | xLAM: one question and the calls that answer it |
| `prompt`, `text` or `question` alone | lists of prompts: one user turn |
| `tagged`, `transcript`: calls that stand in the text | Hermes, Glaive (`specc.datagen.dialects`) |
| `input_ids` with `loss_mask`, `assistant_masks`, `completion_mask` or `labels` | tokens that were made elsewhere |

Tools stand beside any of the first five (`specc.datagen.tools`), images beside or in all but tokens
(`specc.datagen.media`), and what an assistant thought stands in its message
as `reasoning_content`, `reasoning` or `thinking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

from specc.datagen import media
from specc.datagen.dialects import DIALECTS
from specc.datagen.rows import Message, Said
from specc.datagen.tools import ShapeError, calls_of, kind, paired, quoted, result_text, tools_of

__all__ = ["HINT", "ShapeError", "read_row", "shape_of"]

HINT: Final = (
    'a row is one of `{"messages": [{"role", "content"}, …]}`, `{"conversations": [{"from", "value"}, …]}`,'
    ' `{"prompt", "completion"}`, `{"instruction", "input", "output"}`, `{"prompt"}`, `{"input_ids", "loss_mask"}`'
)

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
_THOUGHTS: Final = ("reasoning_content", "reasoning", "thinking")
_CALLS: Final = ("tool_calls", "function_call")
_TOOLS: Final = ("tools", "functions")
_MASKS: Final = ("loss_mask", "assistant_masks", "assistant_mask", "completion_mask", "labels")
_MEDIA: Final = ("videos", "audios", "history")
_NOT_A_LABEL: Final = -100
"""What stands in `labels` where nothing is trained (`torch.nn.CrossEntropyLoss`, `ignore_index`)."""


def read_row(row: object, see: media.See = media.refuse) -> Said:
    """Return what a row of any known shape says; `see` is given its images.

    Messages come in the order system? (user (assistant tool*)*)*. Raises `ShapeError` for an unknown shape, an
    unknown role, turns out of order, content that is empty or not text, calls and tools that cannot be read, masks
    that do not fit their tokens, images that have no place or that `see` refuses, and for other media, which would
    otherwise be lost without a word.
    """
    if not isinstance(row, dict):
        raise ShapeError(f"a row is an object, and this is {kind(row)}")
    fields: dict[str, Any] = row
    for key in _MEDIA:
        if fields.get(key):
            raise ShapeError(f"`{key}` is not in this release")
    shape, column, found = shape_of(fields), media.in_columns(fields), list[object]()
    if shape == "input_ids" and (mask := _mask_of(fields)):
        if column:
            raise ShapeError("it gives its tokens, and its images have no place among them")
        return _tokens(fields, mask)
    if shape is None:
        known = ", ".join(f"`{str(key)[:40]}`" for key in list(fields)[:6])
        raise ShapeError(f"unknown shape with the keys {known}" if known else "the row has no keys")
    if shape in DIALECTS:
        if column:
            raise ShapeError("its calls stand in the text, and its images have no place in it")
        return read_row(DIALECTS[shape](fields), see)
    said: Said = {"messages": paired(_checked(_SHAPES[shape](_lifted(fields, found))))}
    if found or column:
        media.place(said["messages"], found, column, see)
    for key in _TOOLS:
        if fields.get(key) and (tools := tools_of(fields[key], key)):
            said["tools"] = tools
            break
    return said


def shape_of(row: Mapping[str, Any]) -> str | None:
    """Return the key that tells a row's shape, None if none does; tokens with their mask go before all others."""
    if row.get("input_ids") is not None and _mask_of(row):
        return "input_ids"
    return next((key for key in (*_SHAPES, *DIALECTS) if row.get(key) is not None), None)


def _lifted(row: Mapping[str, Any], found: list[object]) -> Mapping[str, Any]:
    """Return a row whose messages have marks in place of parts that are images, which are added to `found`."""
    lifted = dict(row)
    for key in ("messages", "conversations", "prompt", "completion", "response"):
        turns: list[Any] = row[key] if isinstance(row.get(key), list) else []
        for index, turn in enumerate(turns):
            name = next((name for name in ("content", "value") if isinstance(turn, dict) and turn.get(name)), None)
            parts: Any = turn[name] if name else None
            if isinstance(parts, list) and any(media.is_image(part) for part in parts):
                content = media.joined(parts, partial(_part, where=f"{key}[{index}]"), found)
                lifted[key] = [*lifted[key][:index], {**turn, name: content}, *lifted[key][index + 1 :]]
    return lifted


def _turns(turns: object, key: str) -> list[Message]:
    if not isinstance(turns, list):
        raise ShapeError(f"`{key}` is {kind(turns)} and no list")
    messages = list[Message]()
    for index, turn in enumerate(turns):
        message = _message(turn, f"{key}[{index}]")
        if turn.get("role", turn.get("from")) == "function_call" and messages and messages[-1]["role"] == "assistant":
            # ShareGPT says what is said and what is called in two turns; the verifier does in one.
            calls = [*messages[-1].get("tool_calls", []), *message.get("tool_calls", [])]
            messages[-1]["tool_calls"] = calls
        else:
            messages.append(message)
    return messages


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise ShapeError(f"`{where}` is {kind(turn)} and no object")
    fields: dict[str, Any] = turn
    role = fields.get("role", fields.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise ShapeError(f"`{where}` has the unknown role {quoted(role)}")
    content = fields.get("content", fields.get("value"))
    if _ROLES[role] == "tool":
        return _result(fields, result_text(content), where)
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, where)}
    key = next((key for key in _CALLS if fields.get(key)), "")
    calls = fields.get(key)
    if calls and _ROLES[role] != "assistant":
        raise ShapeError(f"`{where}` calls tools, and only an assistant does")
    empty = content is None or (isinstance(content, str) and not content.strip())
    said = "" if calls and empty else _text(content, where)
    message: Message = {"role": _ROLES[role], "content": said}
    thought = next((fields[key] for key in _THOUGHTS if fields.get(key)), None)
    if thought is not None:
        if not isinstance(thought, str):
            raise ShapeError(f"what `{where}` thought is {kind(thought)} and no text")
        if _ROLES[role] == "assistant" and thought.strip():
            message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = _calls(calls, f"{where}.{key}")
    return message


def _calls(value: object, where: str) -> list[Any]:
    calls = calls_of(value, where)
    if not calls:
        raise ShapeError(f"`{where}` calls no tool")
    return calls


def _result(fields: Mapping[str, Any], content: object, where: str) -> Message:
    message: Message = {"role": "tool", "content": content if isinstance(content, str) else _text(content, where)}
    if isinstance(identity := fields.get("tool_call_id"), str) and identity:
        message["tool_call_id"] = identity
    if isinstance(name := fields.get("name"), str) and name:
        message["name"] = name
    return message


def _text(content: object, where: str) -> str:
    if isinstance(content, list):
        # One newline between the parts of a message, as vLLM joins them for templates that take a string.
        content = "\n".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise ShapeError(f"the content of `{where}` is {kind(content)} and no text")
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
        raise ShapeError(
            f"`{where}` has a part of type {quoted(fields.get('type'))}; only text and images are in this release"
        )
    raise ShapeError(f"`{where}` has a part that is {kind(part)}")


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
            raise ShapeError(f"the content of `{key}` is {kind(extra)} and no text")
    return [*_system(row), {"role": "user", "content": asked}, *_answer(row, "output", "response")]


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    prompt = row["prompt"]
    asked: list[Message] = (
        _turns(prompt, "prompt")
        if isinstance(prompt, list)
        else [*_system(row), {"role": "user", "content": _text(prompt, "prompt")}]
    )
    return asked + _answer(row, "completion", "response")


def _xlam(row: Mapping[str, Any]) -> list[Message]:
    asked: list[Message] = [*_system(row), {"role": "user", "content": _text(row["query"], "query")}]
    answers = row.get("answers")
    return (
        [*asked, {"role": "assistant", "content": "", "tool_calls": _calls(answers, "answers")}] if answers else asked
    )


def _plain(key: str) -> Callable[[Mapping[str, Any]], list[Message]]:
    def read(row: Mapping[str, Any]) -> list[Message]:
        return [*_system(row), {"role": "user", "content": _text(row[key], key)}]

    return read


def _no_mask(row: Mapping[str, Any]) -> list[Message]:
    del row
    raise ShapeError("`input_ids` without a mask: " + ", ".join(f"`{key}`" for key in _MASKS))


_SHAPES: Final[Mapping[str, Callable[[Mapping[str, Any]], list[Message]]]] = {
    "messages": _messages,
    "conversations": _conversations,
    "instruction": _alpaca,
    "prompt": _prompt,
    "query": _xlam,
    "question": _plain("question"),
    "text": _plain("text"),
    "input_ids": _no_mask,
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


_FOLLOWS: Final[Mapping[Role, Sequence[Role]]] = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("tool", "assistant", "user"),
}
"""Which roles may follow a role; a tool's result also follows an assistant that called one."""


def _checked(messages: list[Message]) -> list[Message]:
    if all(message["role"] == "system" for message in messages):
        raise ShapeError("the conversation has no user turn")
    allowed: Sequence[Role] = ("system", "user")
    for index, message in enumerate(messages):
        if message["role"] not in allowed:
            if message["role"] == "tool":
                raise ShapeError(f"turn {index + 1} is a tool's result, and the turn before it has no `tool_calls`")
            expected = " or ".join(f"`{role}`" for role in allowed if role != "system")
            raise ShapeError(f"turn {index + 1} is of the role `{message['role']}`, and {expected} was expected")
        allowed = (*(("tool",) if message.get("tool_calls") else ()), *_FOLLOWS[message["role"]])
    return messages


def _mask_of(row: Mapping[str, Any]) -> str | None:
    return next((key for key in _MASKS if row.get(key) is not None), None)


def _tokens(row: Mapping[str, Any], name: str) -> Said:
    """Return tokens and the mask of a name as they are, without padding."""
    ids, mask = _integers(row["input_ids"], "input_ids"), _integers(row[name], name)
    shown = [1] * len(ids) if row.get("attention_mask") is None else _integers(row["attention_mask"], "attention_mask")
    if not len(ids) == len(mask) == len(shown):
        raise ShapeError(f"`input_ids` has {len(ids)} tokens, and `{name}` {len(mask)}")
    if name == "labels":
        if any(label not in (_NOT_A_LABEL, token) for token, label in zip(ids, mask, strict=True)):
            raise ShapeError(f"`labels` are the tokens themselves, not shifted, or {_NOT_A_LABEL}")
        mask = [int(label != _NOT_A_LABEL) for label in mask]
    if not ids or min(ids) < 0 or not set(mask) <= {0, 1}:
        raise ShapeError(f"`input_ids` are whole numbers from 0, at least one, and `{name}` is 0 or 1 for each")
    kept = [(token, trained) for token, trained, there in zip(ids, mask, shown, strict=True) if there]
    return {"messages": [], "input_ids": [token for token, _ in kept], "loss_mask": [trained for _, trained in kept]}


def _integers(value: object, where: str) -> list[int]:
    if not isinstance(value, list):
        raise ShapeError(f"`{where}` is {kind(value)} and no list")
    items: list[Any] = value
    if not all(type(item) in (int, bool) for item in items):
        raise ShapeError(f"`{where}` has a value that is no whole number")
    return [int(item) for item in items]
