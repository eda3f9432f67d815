"""From what jsonschema says to what a person needs: what was expected, what stands there, what to write."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from specc.core.language.reserved import reserved
from specc.core.language.schema import MAX_INTEGER, Schema, fields, tagged_unions
from specc.core.language.text import printable
from specc.core.language.words import choices, dotted, example, first_sentence, listed, number_in, show, types_of, words

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

    from specc.core.errors import SpeccError
    from specc.core.language.document import Document
    from specc.core.language.node import KeyPath

MOST: Final = 100
"""Errors against the schema that are looked into."""
MANY: Final = 16
"""Fields of a section that a hint lists."""
_YAML_1_1: Final = {"yes": "true", "on": "true", "no": "false", "off": "false", "y": "true", "n": "false"}


class Diagnosis:
    """Translates the errors of one document."""

    def __init__(self, document: Document, schema: Schema) -> None:
        self.document = document
        self.schema = schema
        self.fields = fields(schema)
        # The innermost first: a member of it may be missing in what holds it.
        self.unions = dict(sorted(tagged_unions(schema).items(), key=lambda item: -len(item[0])))

    def errors(self, found: Sequence[ValidationError]) -> list[SpeccError]:
        """Return jsonschema's errors as errors of the spec; of a spec of another version only that is said."""
        for error in found:
            if list(error.absolute_path) == ["version"]:
                return [self._version(error.instance)]
        errors = list(itertools.islice((item for error in found for item in self._translate(error)), MOST + 1))
        if len(errors) > MOST:  # a text that is something else, or that is made to take our time
            errors[MOST:] = [self.document.error(f"there are more than {MOST} errors", (), id="E0004",
                                                 hint="mend these first")]  # fmt: skip
        return errors

    def _translate(self, error: ValidationError) -> Iterator[SpeccError]:
        path: KeyPath = tuple(error.absolute_path)
        rule: Any = error.schema
        match error.validator:
            case "additionalProperties":
                known = list(rule["properties"])
                instance: Any = error.instance
                for name in instance:
                    if name not in known:
                        yield self._unknown((*path, name), known)
            case "required":
                yield from self._missing(error, path)
            case "anyOf":
                branch = _branch(error)
                if branch is None:
                    yield self.wrong(path, error.instance, rule)
                else:
                    for inner in branch:
                        yield from self._translate(inner)
            case _:
                yield self.wrong(path, error.instance, rule)

    def _version(self, value: object) -> SpeccError:
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return self.document.error(
                f"this release reads version 1 of the language, and the spec is of version {value}",
                ("version",), hint="install a newer specc", id="E0105")  # fmt: skip
        return self.document.error(f"expected `1` for `version`, found {show(value)}", ("version",), id="E0105")

    def _unknown(self, path: KeyPath, known: list[str]) -> SpeccError:
        name, section = str(path[-1]), dotted(path[:-1])
        if refused := reserved(path):
            return self.document.error(refused.sentence, path, key=True, hint=refused.hint, id=refused.id)
        if (other := self._owners(path)) is not None:
            union, tag, owners, chosen = other
            kind = (union if tag == "name" else tag) + ("s" if len(owners) > 1 else "")
            return self.document.error(
                f"`{printable(name)}` belongs to {kind} {listed(owners)}, and this {union} is"
                f" `{printable(str(chosen))}`",
                path, key=True, id="E0106", hint=f"remove it, or use `{tag}: {owners[0]}`")  # fmt: skip
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.6)
        note, hint = (f"did you mean `{near[0]}`?", None) if near else (self._elsewhere(name), None)
        if note is None:
            few = len(known) <= MANY
            hint = f"known here: {listed(known)}" if few else f"`specc schema --field {section}` lists them"
        inside = f" in `{section}`" if section else ""
        return self.document.error(f"unknown field `{printable(name)}`{inside}", path, key=True, note=note, hint=hint,
                                   id="E0101")  # fmt: skip

    def _elsewhere(self, name: str) -> str | None:
        """Return where a field of this or nearly this name stands in the language."""
        places = {place.rpartition(".")[2]: place for place in reversed(self.fields)}
        near = difflib.get_close_matches(name, places, n=1, cutoff=0.8)
        return f"did you mean `{places[near[0]]}`?" if near else None

    def _owners(self, path: KeyPath) -> tuple[str, str, list[str], object] | None:
        """Return (union, tag, members, chosen one) if the field at `path` is one of other members of a tagged union."""
        for place, union in self.unions.items():
            section: Any = self.document.data
            if path[: len(place)] != place or len(path) == len(place):
                continue
            for part in place:
                section = section[part]
            chosen, field = section.get(union.tag, union.default), dotted(path[len(place) :])
            owners = [name for name, known in union.members.items() if name != chosen and field in known]
            if owners and field not in union.members.get(str(chosen), ()):
                return str(place[-1]), union.tag, owners, chosen
        return None

    def _missing(self, error: ValidationError, path: KeyPath) -> Iterator[SpeccError]:
        instance: Any = error.instance
        # jsonschema has one error for each missing name and names it in its message only.
        required: Any = error.validator_value
        name = next(item for item in required if error.message.startswith(f"{item!r} "))
        section = dotted(path)
        rule: Any = error.schema
        if not {"additionalProperties", "allOf"} & rule.keys():  # only what is required of the section
            rule = self.fields[section][0] if path else self.schema
        strangers = [other for other in instance if other not in rule["properties"]]
        meant = difflib.get_close_matches(name, strangers)
        in_list = bool(path) and isinstance(path[-1], int)
        if meant or (in_list and any(reserved((*path, other)) for other in strangers)):
            # `fiel` or `dataset` in place of `file` is one mistake, not two; a union without its tag takes any field.
            if "additionalProperties" not in rule:
                yield from (self._unknown((*path, other), [name]) for other in meant[:1])
            return
        field = self.fields.get(dotted((*path, name)))
        what = first_sentence(field[0].get("description", "")) if field else ""
        yield self.document.error(
            f"`{name}` is missing" + (f" in `{section}`" if section else ""), path, key=True, id="E0103",
            hint=f"add `{name}: {example(field[0]) if field else '…'}`" + (f", {what}" if what else ""))  # fmt: skip

    def wrong(self, path: KeyPath, value: object, rule: Mapping[str, Any] | None = None) -> SpeccError:
        """Return the error for a value that the field at `path` does not take; `rule` is for items of lists."""
        if refused := reserved(path, value):
            return self.document.error(refused.sentence, path, hint=refused.hint, id=refused.id)
        known = self._whole_rule(path, rule or {}) or rule or {}
        note, hint = self._advice(value, known)
        return self.document.error(f"expected {words(known)} for `{dotted(path)}`, found {show(value)}", path,
                                   note=note, hint=hint, id="E0102")  # fmt: skip

    def _whole_rule(self, path: KeyPath, failed: Mapping[str, Any]) -> Schema | None:
        """Return the field's schema, which says more than the branch that `failed`; None where it is another's."""
        if isinstance(path[-1], int):
            return None
        found = self.fields.get(dotted(path))
        # Members of a union have fields of one name, and a choice of their own for it.
        inside = any(len(path) > len(place) and path[: len(place)] == place for place in self.unions)
        said = failed.get("description")
        return None if found is None or (inside and said not in {None, found[0].get("description")}) else found[0]

    def _advice(self, value: object, rule: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Return a note beside the caret and a hint."""
        kinds = types_of(rule)
        if value is None:
            return None, "give it a value, or remove the line"
        if isinstance(value, int | float) and value > MAX_INTEGER and "integer" in kinds:
            return "the largest is 2^53 - 1", None
        if isinstance(value, str):
            near = difflib.get_close_matches(value.lower(), choices(rule), n=1, cutoff=0.6)
            if near:
                return f"did you mean `{near[0]}`?", None
            if "boolean" in kinds and value.lower() in _YAML_1_1:
                return f"write `{_YAML_1_1[value.lower()]}`", None
            if "boolean" in kinds and value.lower() in ("true", "false"):
                return "remove the quotes", None
            if {"integer", "number"} & kinds and (number := number_in(value)):
                return f"write `{number}`", None
        if isinstance(value, dict) and "array" in kinds:
            return None, "start each item of a list with `- `"
        if kinds & {"array", "object"} and (shape := example(rule)) != "…":
            return None, f"it looks like `{shape}`"
        return None, None


def _branch(error: ValidationError) -> list[ValidationError] | None:
    """Return the errors inside the one branch of `anyOf` that the value's type fits, if it is a container."""
    if not isinstance(error.instance, dict | list):
        return None
    name = "object" if isinstance(error.instance, dict) else "array"
    options: Any = error.validator_value
    for index, option in enumerate(options):
        if name in types_of(option):
            return [inner for inner in error.context or () if inner.schema_path[0] == index]
    return None
