"""Rows whose calls stand in the text, in the marks of the collection that they are from, as rows in OpenAI's form.

| column | a row has | known from |
|---|---|---|
| `tagged`, `tools` | `[{"from", "value"}]`, calls in `<tool_call>`, results in `<tool_response>` | Hermes |
| `transcript`, `system` | one text of `USER: …`, `ASSISTANT: … <functioncall> {…}`, `FUNCTION RESPONSE: …` | Glaive |

A spec names the column (`data.sources[].columns`): nothing is taken for a call that a user may have written as text.
What such a row says of tools in its system turn, how they are called too, is left out: the verifier's template says it
in the verifier's own words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from specc.datagen.tools import ShapeError, kind, quoted

_CALL: Final = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT: Final = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_LISTS_TOOLS: Final = re.compile(r"<tools>.*</tools>", re.DOTALL)
_SPEAKER: Final = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
_END: Final = "<|endoftext|>"
_CALLS: Final = "<functioncall>"
_QUOTED: Final = re.compile(r"""("arguments"\s*:\s*)'(.*)'(\s*\}\s*)\Z""", re.DOTALL)
"""Glaive's arguments: JSON between single quotes, so that the whole is none."""
_ROLES: Final = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}

Row = dict[str, Any]


def tagged(row: Mapping[str, Any]) -> Row:
    """Return a row in Hermes's marks as one of `messages` and `tools`; raises `ShapeError`.

    A row of which the tools stand in the system turn alone is read with that turn, and its calls too.
    """
    turns = row["tagged"]
    if not isinstance(turns, list):
        raise ShapeError(f"`tagged` is {kind(turns)} and no list")
    messages, tools = list[Row](), row.get("tools")
    for index, turn in enumerate(turns):
        where = f"tagged[{index}]"
        if not isinstance(turn, dict) or not isinstance(text := turn.get("value", turn.get("content")), str):
            raise ShapeError(f"`{where}` is no turn with a text")
        said: Row = {"role": turn.get("from", turn.get("role")), "content": text}
        match said["role"]:
            case "system" if tools and _LISTS_TOOLS.search(text):
                continue
            case "gpt" | "assistant":
                messages.append(_with_calls(said, _CALL, where))
            case "tool":
                messages += [{"role": "tool", **_result(item, where)} for item in _RESULT.findall(text) or [text]]
            case _:
                messages.append(said)
    return {"messages": messages, "tools": tools}


def transcript(row: Mapping[str, Any]) -> Row:
    """Return a row in Glaive's marks as one of `messages` and `tools`; raises `ShapeError`."""
    text = row["transcript"]
    if not isinstance(text, str):
        raise ShapeError(f"`transcript` is {kind(text)} and no text")
    system, tools = _listed(row.get("system"))
    before, *spoken = _SPEAKER.split(text)
    if before.strip() or not spoken:
        raise ShapeError("`transcript` does not begin with `USER:`")
    messages: list[Row] = [{"role": "system", "content": system}] if system else []
    for index in range(0, len(spoken), 2):
        said = spoken[index + 1].replace(_END, "").strip()
        role, where = _ROLES[spoken[index]], f"turn {index // 2 + 1} of `transcript`"
        if role == "assistant" and _CALLS in said:
            words, _, call = said.partition(_CALLS)
            messages.append({"role": role, "content": words.strip(), "tool_calls": [_glaive_call(call, where)]})
        else:
            messages.append({"role": role, "content": said})
    return {"messages": messages, "tools": tools}


DIALECTS: Final[Mapping[str, Callable[[Mapping[str, Any]], Row]]] = {"tagged": tagged, "transcript": transcript}
"""The key that tells a dialect, and what reads a row of it."""


def _with_calls(said: Row, marks: re.Pattern[str], where: str) -> Row:
    """Return an assistant's turn with the calls that stand in its text apart from it; marks without a pair are text."""
    calls = [_json(item, f"a call in {where}") for item in marks.findall(said["content"])]
    return {**said, "content": marks.sub("", said["content"]).strip(), "tool_calls": calls} if calls else said


def _result(text: str, where: str) -> Row:
    """Return what a tool answered, with its name where the text is `{"name", "content"}`."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {"content": text.strip()}
    if not isinstance(found, dict) or set(found) != {"name", "content"}:
        return {"content": text.strip()}
    if not isinstance(found["name"], str):
        raise ShapeError(f"`{where}` has a result of {quoted(found['name'])}")
    return {"name": found["name"], "content": found["content"]}


def _glaive_call(text: str, where: str) -> Any:
    inner = _QUOTED.search(text.strip())
    if inner is None:
        return _json(text, f"a call in {where}")
    whole = text.strip()[: inner.start()] + inner[1] + inner[2].replace("\\'", "'") + inner[3]
    return _json(whole, f"a call in {where}")


def _listed(system: object) -> tuple[str, list[Any]]:
    """Return what a system text says before it lists tools, if it lists none, and else the tools."""
    if system is None:
        return "", []
    if not isinstance(system, str):
        raise ShapeError(f"`system` is {kind(system)} and no text")
    text = system.strip().removeprefix("SYSTEM:").strip()
    words, brace, rest = text.partition("\n{")
    if not brace:
        return words, []
    tools, decoder, rest = list[Any](), json.JSONDecoder(), "{" + rest
    while rest:
        try:
            tool, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as error:
            raise ShapeError("`system` lists a tool that is no JSON") from error
        tools.append(tool)
        rest = rest[end:].lstrip()
    return "", tools


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"{where} is no JSON") from error
