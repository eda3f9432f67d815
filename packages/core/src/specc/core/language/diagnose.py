"""From what jsonschema says to what a person needs: what was expected, what stands there, what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from specc.core.language.reserved import reserved
from specc.core.language.schema import MAX_INTEGER, Schema, fields
from specc.core.language.text import printable

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

    from specc.core.errors import SpeccError
    from specc.core.language.document import Document, KeyPath

_TYPES: Final = {
    "string": ("a string", str),
    "integer": ("a whole number", int),
    "number": ("a number", (int, float)),
    "boolean": ("`true` or `false`", bool),
    "array": ("a list", list),
    "object": ("a mapping", dict),
    "null": ("`null`", type(None)),
}
_YAML_1_1: Final = {"yes": "true", "on": "true", "no": "false", "off": "false", "y": "true", "n": "false"}


class Diagnosis:
    """Translates the errors of one document."""

    def __init__(self, document: Document, schema: Schema) -> None:
        self.document = document
        self.schema = schema

    def errors(self, found: Sequence[ValidationError]) -> list[SpeccError]:
        """Return jsonschema's errors as errors of the spec; of a spec of another version only that is said."""
        for error in found:
            if list(error.absolute_path) == ["version"]:
                return [self._version(error.instance)]
        return [item for error in found for item in self._translate(error)]

    def _translate(self, error: ValidationError) -> Iterator[SpeccError]:
        path: KeyPath = tuple(error.absolute_path)
        rule: Any = error.schema
        match error.validator:
            case "additionalProperties":
                known = list(rule["properties"])
                for name in error.instance:
                    if name not in known:
                        yield self._unknown((*path, name), known)
            case "required":
                yield from self._missing(error, path)
            case "anyOf":
                branch = _branch(error)
                if branch is None:
                    yield self._wrong(path, error.instance, rule)
                else:
                    for inner in branch:
                        yield from self._translate(inner)
            case _:
                yield self._wrong(path, error.instance, rule)

    def _version(self, value: object) -> SpeccError:
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return self.document.error(f"this release reads version 1 of the language, and the spec is of version {value}",
                                       ("version",), hint="install a newer specc", id="E0105")  # fmt: skip
        return self.document.error(f"expected `1` for `version`, found {show(value)}", ("version",), id="E0105")

    def _unknown(self, path: KeyPath, known: list[str]) -> SpeccError:
        name, section = str(path[-1]), dotted(path[:-1])
        if refused := reserved(path):
            return self.document.error(refused[0], path, key=True, hint=refused[1], id="E0104")
        if path[0] == "draft" and (owner := self._owner(path)):
            return self.document.error(
                f"`{printable(name)}` belongs to algorithm `{owner}`, and this draft is `{self._algorithm()}`",
                path, key=True, id="E0106", hint=f"remove it, or use `algorithm: {owner}`")  # fmt: skip
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
        note, hint = (f"did you mean `{near[0]}`?", None) if near else (None, None)
        if not near:
            places = [place for place in fields(self.schema) if place.rsplit(".", 1)[-1] == name]
            if places:
                note = f"it stands in `{places[0].rpartition('.')[0] or 'the spec itself'}`"
            else:
                hint = f"known here: {listed(known)}"
        inside = f" in `{section}`" if section else ""
        return self.document.error(f"unknown field `{printable(name)}`{inside}", path, key=True, note=note, hint=hint,
                                   id="E0101")  # fmt: skip

    def _owner(self, path: KeyPath) -> str | None:
        """Return another algorithm that has the draft field at `path`."""
        for condition in self.schema["properties"]["draft"]["allOf"]:
            name = condition["if"]["properties"]["algorithm"]["const"]
            if name != self._algorithm() and dotted(path[1:]) in fields(condition["then"]):
                return name
        return None

    def _algorithm(self) -> object:
        draft = self.document.data.get("draft")
        return draft.get("algorithm") if isinstance(draft, dict) else None

    def _missing(self, error: ValidationError, path: KeyPath) -> Iterator[SpeccError]:
        instance: Any = error.instance
        # jsonschema has one error for each missing name and names it in its message only.
        name = next(item for item in error.validator_value if error.message.startswith(f"{item!r} "))
        if any(reserved((*path, other)) for other in instance):
            return  # `dataset` in place of `file` is one mistake, not two
        field = fields(self.schema).get(dotted((*path, name)))
        what = first_sentence(field[0].get("description", "")) if field else ""
        section = dotted(path)
        yield self.document.error(
            f"`{name}` is missing" + (f" in `{section}`" if section else ""), path, key=True, id="E0103",
            hint=f"add `{name}: {example(field[0]) if field else '…'}`" + (f" ({what})" if what else ""))  # fmt: skip

    def _wrong(self, path: KeyPath, value: object, rule: Mapping[str, Any]) -> SpeccError:
        if refused := reserved(path, value):
            return self.document.error(refused[0], path, hint=refused[1], id="E0104")
        known = self._whole_rule(path) or rule
        note, hint = self._advice(value, known)
        return self.document.error(f"expected {words(known)} for `{dotted(path)}`, found {show(value)}", path,
                                   note=note, hint=hint, id="E0102")  # fmt: skip

    def _whole_rule(self, path: KeyPath) -> Schema | None:
        """Return the field's schema, which says more than the branch that failed."""
        if any(isinstance(part, int) for part in path[-1:]):
            return None
        found = fields(self.schema).get(dotted(path))
        return found[0] if found else None

    def _advice(self, value: object, rule: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Return a note beside the caret and a hint."""
        kinds = types_of(rule)
        if value is None:
            return None, "give it a value, or remove the line"
        if isinstance(value, str):
            near = difflib.get_close_matches(value.lower(), choices(rule), n=1, cutoff=0.6)
            if near:
                return f"did you mean `{near[0]}`?", None
            if "boolean" in kinds and value.lower() in _YAML_1_1:
                return f"write `{_YAML_1_1[value.lower()]}`", None
            if "boolean" in kinds and value.lower() in ("true", "false"):
                return "remove the quotes", None
            if {"integer", "number"} & kinds and (number := _number(value)):
                return f"write `{number}`", None
        if isinstance(value, dict) and "object" not in kinds:
            return None, "it is one value: remove what is indented below it, or the braces"
        if isinstance(value, str | int | float) and kinds == {"array"}:
            return None, "a list has a line `- …` for each item, or brackets: `[…]`"
        return None, None


def _branch(error: ValidationError) -> list[ValidationError] | None:
    """Return the errors inside the one branch of `anyOf` that the value's type fits, if it is a container."""
    if not isinstance(error.instance, dict | list):
        return None
    name = "object" if isinstance(error.instance, dict) else "array"
    for index, option in enumerate(error.validator_value):
        if name in types_of(option):
            return [inner for inner in error.context or () if inner.schema_path[0] == index]
    return None


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
        return listed(rule.get("enum") or [rule["const"]], "or")
    if "patternErrorMessage" in rule:
        return str(rule["patternErrorMessage"])
    kinds = [kind for kind in ([rule["type"]] if isinstance(rule["type"], str) else rule["type"]) if kind != "null"]
    text = _TYPES[kinds[0]][0] + _bounds(rule)
    nullable = "null" in rule["type"] and "default" in rule and not isinstance(rule["type"], str)
    return text + (" or `null`" if nullable else "")


def _bounds(rule: Mapping[str, Any]) -> str:
    low, above = rule.get("minimum"), rule.get("exclusiveMinimum")
    high, below = rule.get("maximum"), rule.get("exclusiveMaximum")
    if high == MAX_INTEGER and low != 0:
        high = None
    if rule.get("minLength"):
        return " that is not empty"
    if "minItems" in rule:
        least, most = rule["minItems"], rule.get("maxItems")
        item = words(rule["items"]).removeprefix("a ") if "items" in rule and least == most else ""
        numbers = item.replace("whole number", "whole numbers", 1) if item.startswith("whole") else item.replace(
            "number", "numbers", 1)  # fmt: skip
        return f" of {least} {numbers}" if least == most else " of at least one item"
    if rule.get("minProperties"):
        return " with at least one field"
    lower = f"from {low}" if low is not None else f"above {above}" if above is not None else ""
    upper = f"to {high}" if high is not None else f"below {below}" if below is not None else ""
    if low is not None and low == high:
        return f" that is {low}"
    if lower and upper:
        return f" {lower} {upper if high is not None and low is not None else 'and ' + (upper.replace('to ', 'at most '))}"
    if low is not None:
        return f" of at least {low}"
    return f" {lower or upper.replace('to ', 'of at most ')}" if lower or upper else ""


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


def _number(text: str) -> str | None:
    """Return the number that a string was meant to be (`1_000`, `1e-4`, `0,5`), None if it is none."""
    plain = text.strip().replace("_", "")
    for candidate in (plain, plain.replace(",", ".")):
        try:
            number = float(candidate)
        except ValueError:
            continue
        if abs(number) < float(MAX_INTEGER):
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
    """Return a description's first sentence without its full stop, to stand in brackets."""
    return text.split(". ")[0].rstrip(".").split("; ")[0]


def example(rule: Mapping[str, Any]) -> str:
    """Return how a field's value begins."""
    if words_ := choices(rule):
        return words_[0]
    if "const" in rule:
        return str(rule["const"])
    return {"object": "…", "array": "[…]"}.get(str(rule.get("type")), "…")
