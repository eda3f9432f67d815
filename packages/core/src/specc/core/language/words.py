"""Schemas and values in words: what a field takes, what stands there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from specc.core.language.schema import MAX_INTEGER
from specc.core.language.text import printable

if TYPE_CHECKING:
    from specc.core.language.node import KeyPath

_KINDS: Final = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a mapping",
}
_PLURALS: Final = {"string": "strings", "integer": "whole numbers", "number": "numbers", "object": "mappings"}
SHOWN: Final = 20
"""Names that a sentence lists; of more it gives the number."""


def types_of(rule: Mapping[str, Any]) -> set[str]:
    """Return the JSON types that a schema takes."""
    found = rule.get("type", [])
    kinds = {found} if isinstance(found, str) else set(found)
    return kinds.union(*(types_of(option) for option in rule.get("anyOf", ())))


def choices(rule: Mapping[str, Any]) -> list[str]:
    """Return the words that a schema takes."""
    own = [rule["const"]] if "const" in rule else list(rule.get("enum", ()))
    inner = [word for option in rule.get("anyOf", ()) for word in choices(option)]
    return [word for word in [*own, *inner] if isinstance(word, str)]


def words(rule: Mapping[str, Any]) -> str:
    """Return what a schema takes, as it stands in a sentence after «expected»."""
    if "anyOf" in rule:
        return " or ".join(words(option) for option in rule["anyOf"] if option.get("type") != "null")
    if "const" in rule or "enum" in rule:
        known = [json.dumps(word) if isinstance(word, bool) else word for word in rule.get("enum") or [rule["const"]]]
        return listed(known, "or") if len(known) <= SHOWN else f"one of {len(known)} names (`{known[0]}`, …)"
    if "patternErrorMessage" in rule:
        return str(rule["patternErrorMessage"])
    kinds = types_of(rule)
    kind = next(iter(kinds - {"null"}), "")
    off = " or `null`" if "null" in kinds and "default" in rule else ""
    return _KINDS.get(kind, "another value") + _extent(rule, kind) + off


def _extent(rule: Mapping[str, Any], kind: str) -> str:
    """Return the bounds of a schema, with a space before them."""
    match kind:
        case "string" if rule.get("minLength"):
            return " that is not empty"
        case "object" if rule.get("minProperties"):
            return " with at least one field"
        case "array" if "minItems" in rule:
            if rule["minItems"] != rule.get("maxItems"):
                least = rule["minItems"]
                if rule.get("uniqueItems"):
                    return " of different items"
                return " of at least one item" if least == 1 else f" of at least {least} items"
            item: str = rule["items"]["type"]
            return f" of {rule['minItems']} {_PLURALS[item]}{_extent(rule['items'], item)}"
        case "integer" | "number":
            return _range(rule)
        case _:
            return ""


def _range(rule: Mapping[str, Any]) -> str:
    low, above = rule.get("minimum"), rule.get("exclusiveMinimum")
    high, below = rule.get("maximum"), rule.get("exclusiveMaximum")
    if low is not None and low == high:
        return f" that is {low}"
    if high == MAX_INTEGER:
        high = None  # a bound of the format, not of the field
    if low is not None and high is not None:
        return f" from {low} to {high}"
    lower = f" of at least {low}" if low is not None else f" above {above}" if above is not None else ""
    upper = f"at most {high}" if high is not None else f"below {below}" if below is not None else ""
    return f"{lower} and {upper}" if lower and upper else lower or (f" {upper}" if upper else "")


def show(value: object) -> str:
    """Return a value of a document as it stands in a sentence after «found»."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'the string "{printable(value)}"'
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case _:
            return str(value)


def number_in(text: str) -> str | None:
    """Return the number that a string was meant to be (`"1e-4"`, `1_000`, `0,5`), None if it is none."""
    plain = text.strip().replace("_", "")
    for candidate in (plain, plain.replace(",", ".")):
        try:
            number = float(candidate)
        except ValueError:
            continue
        if abs(number) < MAX_INTEGER:
            return candidate
    return None


def dotted(path: KeyPath) -> str:
    """Return a path without indexes, as fields are named in prose."""
    return printable(".".join(part for part in path if isinstance(part, str)), 200)


def listed(names: Sequence[object], last: str = "and") -> str:
    """Return `a`, `b` and `c`."""
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def first_sentence(text: str) -> str:
    """Return a description's first sentence without its full stop, to stand inside another."""
    sentence = text.partition(". ")[0].partition("; ")[0].rstrip(".")
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() or sentence[1:2] == " " else sentence


def example(rule: Mapping[str, Any]) -> str:
    """Return how a value begins that has what is required and nothing else."""
    if "const" in rule or choices(rule):
        return str(rule["const"]) if "const" in rule else choices(rule)[0]
    kinds = types_of(rule)
    if "object" in kinds:
        inner = [f"{name}: {example(rule['properties'][name])}" for name in rule.get("required", ())]
        return "{" + ", ".join(inner) + "}" if inner else "…"
    if "array" in kinds and "anyOf" not in rule and "object" in types_of(rule["items"]):
        return f"[{example(rule['items'])}]"
    return "…"
