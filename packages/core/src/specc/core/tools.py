"""Tools that an assistant may call, in the one form that chat templates are given, as vLLM's server gives them.

A row lists them as `[{"type": "function", "function": {"name", "description", "parameters"}}]` (OpenAI), or as
`[{"name", "description", "parameters"}]` (ShareGPT, xLAM), or as the JSON text of either. Of a tool vLLM keeps those
keys and `strict`, in that order (`FunctionDefinition` of its server), and so does `specc`, as JSON text, which keeps
the order of keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn


class ShapeError(ValueError):
    """Why a row is no conversation, in a few words without its place."""


def tools_of(value: object, where: str) -> str | None:
    """Return tools as the JSON text of a list in vLLM's form, None if there are none."""
    tools = [_tool(item, f"{where}[{index}]") for index, item in enumerate(listed(value, where, "tools"))]
    return text_of(tools) if tools else None


def listed(value: object, where: str, what: str) -> list[Any]:
    """Return the items of a list, of one object, or of the JSON text of either; `what` they are is for people."""
    items = parsed(value, where)
    if not isinstance(items, list | dict):
        raise ShapeError(f"`{where}` is {kind(items)} and no list of {what}")
    return [items] if isinstance(items, dict) else items


def _tool(item: object, where: str) -> dict[str, Any]:
    fields = object_of(item, where)
    if fields.get("type", "function") != "function":
        raise ShapeError(f"`{where}` is a tool of type {quoted(fields.get('type'))}, and only functions are known")
    function = object_of(fields.get("function", fields), f"{where}.function" if "function" in fields else where)
    name, parameters = name_of(function, where), function.get("parameters")
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


def name_of(function: Mapping[str, Any], where: str) -> str:
    """Return a function's name."""
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ShapeError(f"`{where}` names no function")
    return name


def object_of(value: object, where: str) -> dict[str, Any]:
    """Return a value that is an object."""
    if not isinstance(value, dict):
        raise ShapeError(f"`{where}` is {kind(value)} and no object")
    return value


def parsed(value: object, where: str) -> object:
    """Return the value of JSON text, and what is no text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse) if value.strip() else []
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"`{where}` is text and no JSON") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def text_of(value: object) -> str:
    """Return a value's JSON text, its keys in their order."""
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
