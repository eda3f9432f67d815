"""The published schema: made from the models, read back by `check`, compared in CI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from specc.core.errors import SpeccError
from specc.core.shipped import shipped

if TYPE_CHECKING:
    from pydantic import BaseModel

    from specc.core.language.node import KeyPath

FILE: Final = "speculator.v1.schema.json"
ID: Final = "urn:specc:schema:speculator:v1"
DRAFT: Final = "http://json-schema.org/draft-07/schema#"
_EXTENDS: Final[Mapping[str, Any]] = {
    "description": "Spec that this one goes on from: a file, relative to this one, or `package:NAME/FILE` for a file of"
    " an installed package. Mappings are merged, this spec's values before its own; lists are replaced whole."
    " Default: none.",
    "type": "string",
    "minLength": 1,
}
MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that canonical JSON (RFC 8785) holds exactly; the bound of all that have no closer one."""

Schema = dict[str, Any]
_ORDER: Final = ("description", "type", "const", "enum", "anyOf", "default", "required", "additionalProperties")


def build_schema() -> Schema:
    """Return the language's JSON Schema (Draft-07): a tree without references, every field described.

    A tagged union becomes `allOf` of `if`/`then`: with `oneOf`, validators can only say that no branch fits.
    """
    from specc.core.language.editors import for_editors
    from specc.core.language.models import Spec

    tree = tree_of(Spec)
    required = _take_required(tree, levels=2)
    first, *others = tree["properties"].items()
    tree["properties"] = dict([first, ("extends", _EXTENDS), *others, ("matrix", _matrix(tree))])
    # What a spec must have it may have from the one that it extends.
    whole = {"if": {"required": ["extends"]}, "then": {}, "else": required}
    return for_editors({"$schema": DRAFT, "$id": ID, **tree, **whole})


def _take_required(node: Schema, levels: int) -> Schema:
    """Take `required` out of a mapping and the mappings in it, so many levels deep, and return it as a schema."""
    taken: Schema = {"required": node.pop("required")} if "required" in node else {}
    inner = {
        name: found
        for name, rule in node.get("properties", {}).items()
        if levels > 1 and (found := _take_required(rule, levels - 1))
    }
    return {**taken, "properties": inner} if inner else taken


def _matrix(tree: Schema) -> Schema:
    """Return the schema of `matrix`: a list of values for each field that is no section."""
    every = fields(tree)
    lists = tuple(
        f"{path}." for path, (rule, _) in every.items() if any("items" in one for one in (rule, *rule.get("anyOf", ())))
    )
    rules = {
        path: rule
        for path, (rule, _) in every.items()
        if "." in path and rule.get("type") != "object" and not path.startswith(("runtime.", *lists))
    }
    entry: Schema = {"type": "object", "minProperties": 1, "propertyNames": {"enum": list(rules)}}
    return {
        "description": "Values of several fields: each combination of them is a build of its own, and all have one plan"
        " and one lock. Default: none, a single build.",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "include": {
                "description": "Values that are added to every combination which has the same values of the matrix's"
                " own fields; an entry that fits none is a combination of its own. Default: none.",
                "type": "array", "items": entry, "minItems": 1,
            },
            "exclude": {
                "description": "Values of some fields of the matrix whose combinations are left out. Default: none.",
                "type": "array", "items": entry, "minItems": 1,
            },
            **{
                path: {"description": rule["description"], "type": "array", "minItems": 1,
                       "items": {key: value for key, value in rule.items() if key not in ("description", "default")}}
                for path, rule in rules.items()
            },
        },
    }  # fmt: skip


def tree_of(model: type[BaseModel], mode: Literal["validation", "serialization"] = "validation") -> Schema:
    """Return the schema of what a model takes, or of what it writes, without references."""
    raw = model.model_json_schema(by_alias=True, mode=mode)
    definitions: Mapping[str, Schema] = raw.pop("$defs", {})
    return _clean(raw, definitions)


def render(schema: Schema) -> str:
    """Return a schema as it is published: indented, fields in the order of the models."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def render_schema() -> str:
    """Return the language's schema as it is published."""
    return render(build_schema())


def published_path(file: str = FILE) -> Path:
    """Return where a published schema is: inside the package in a wheel, in `schema/` in a checkout."""
    path = shipped(__file__, f"published/{file}", f"schema/{file}")
    if path.is_file():
        return path
    raise SpeccError(f"the published schema `{file}` is not where specc was installed",
                     hint="install specc again; in a checkout, `make schema` writes it")  # fmt: skip


@cache
def published_schema() -> Schema:
    """Return the schema that `check` validates against, which is the one that editors read."""
    return json.loads(published_path().read_text(encoding="utf-8"))


def one_section(schema: Schema, name: str) -> Schema:
    """Return the schema of a file that holds one section of a spec and nothing else."""
    properties = {name: schema["properties"][name]}
    return {"type": "object", "required": [name], "additionalProperties": False, "properties": properties}


def fields(schema: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Schema, bool]]:
    """Return every field by its dotted path (`data.sources.file` for a field of a list's items).

    The flag says whether the mapping that holds the field requires it.
    """
    found: dict[str, tuple[Schema, bool]] = {}
    whole: Schema = schema.get("else", {})
    for branch in (schema, *_branches(schema)):
        for name, rule in branch.get("properties", {}).items():
            if "." in name:
                continue  # of a matrix: the path of a field, and none itself
            path = f"{prefix}.{name}" if prefix else name
            required = name in branch.get("required", whole.get("required", ()))
            item = {**rule, **whole.get("properties", {}).get(name, {})}
            item.pop("doNotSuggest", None)  # of `else` alone, and said to editors
            if path not in found or ("description" in item and "const" not in item):  # a tag, with all it can be
                found[path] = (item, required)
            found |= fields(item, path)
    return found


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tagged union: the key that tells its members apart, the member that is meant without it, and their fields."""

    tag: str
    default: str | None
    members: Mapping[str, frozenset[str]]


def tagged_unions(schema: Schema) -> dict[KeyPath, Tagged]:
    """Return the tagged unions of a schema by their paths."""
    found: dict[KeyPath, Tagged] = {}
    for path, (rule, _) in fields(schema).items():
        members: dict[str, frozenset[str]] = {}
        tag = ""
        for condition in rule.get("allOf", ()):
            ((tag, name),) = condition["if"]["properties"].items()
            members[name["const"]] = frozenset(fields(condition["then"]))
        if members:
            found[tuple(path.split("."))] = Tagged(tag, rule["properties"][tag].get("default"), members)
    return found


def _branches(schema: Mapping[str, Any]) -> list[Schema]:
    """Return the sub-schemas that describe the same value, or the items of the same list."""
    inner: list[Schema] = [item["then"] for item in schema.get("allOf", ()) if "then" in item]
    inner += schema.get("anyOf", ())
    if "items" in schema:
        inner.append(schema["items"])
    return inner


def _clean(node: Any, definitions: Mapping[str, Schema]) -> Any:
    """Return pydantic's schema without references, auto titles and defaults that say nothing."""
    if isinstance(node, list):
        return [_clean(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    merged: Schema = dict(node)
    if reference := merged.pop("$ref", None):
        # What stands beside a reference (a description, a default) says more than the target's own.
        merged = {**definitions[reference.rsplit("/", 1)[1]], **merged}
    if "discriminator" in merged:
        return _tagged_union(merged, definitions)
    if isinstance(merged.get("default"), dict | None):
        merged.pop("default", None)  # a section's defaults are those of its fields; None means derived, or off
    if isinstance(merged.get("title"), str):
        del merged["title"]
    if isinstance(merged.get("description"), str):
        merged["description"] = " ".join(merged["description"].split())  # a docstring's lines are one sentence
    properties = merged.pop("properties", None)
    result: Schema = {key: value if key == "default" else _clean(value, definitions) for key, value in merged.items()}
    if properties is not None:
        result["properties"] = {name: _clean(item, definitions) for name, item in properties.items()}
    return _ordered(_bounded(_nullable(result)))


def _nullable(node: Schema) -> Schema:
    """Write `anyOf` of one typed schema and null as that schema with two types."""
    match node.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}] if "const" not in rest and "enum" not in rest:
            others = {key: value for key, value in node.items() if key != "anyOf"}
            return {**rest, **others, "type": [kind, "null"]}
        case _:
            return node


def _bounded(node: Schema) -> Schema:
    if "integer" in (node.get("type") or ()) and not {"const", "maximum", "exclusiveMaximum"} & node.keys():
        node["maximum"] = MAX_INTEGER
    return node


def _ordered(node: Schema) -> Schema:
    """Put first what a reader asks first."""
    first = [key for key in _ORDER if key in node]
    return {key: node[key] for key in [*first, *(key for key in node if key not in first)]}


def _tagged_union(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    tag: str = node["discriminator"]["propertyName"]
    members = [_clean(member, definitions) for member in node["oneOf"]]
    names = [member["properties"][tag]["const"] for member in members]
    default = next((member["properties"][tag]["default"] for member in members if "default" in
                    member["properties"][tag]), None)  # fmt: skip
    conditions: list[Schema] = []
    for name, member in zip(names, members, strict=True):
        # The tag first: it is what a reader looks for, and what decides the rest.
        member["properties"] = {tag: member["properties"].pop(tag), **member["properties"]}
        required = {} if name == default else {"required": [tag]}
        conditions.append({"if": {"properties": {tag: {"const": name}}, **required}, "then": member})
    described: Schema = {"enum": names, "description": members[0]["properties"][tag]["description"]}
    return {
        "description": node.get("description", ""),
        "type": "object",
        **({"required": [tag]} if default is None else {}),
        "properties": {tag: described if default is None else {**described, "default": default}},
        "allOf": conditions,
    }
