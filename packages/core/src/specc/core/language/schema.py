"""The published schema: made from the models, read back by `check`, compared in CI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from specc.core.errors import SpeccError

if TYPE_CHECKING:
    from pydantic import BaseModel

FILE: Final = "speculator.v1.schema.json"
ID: Final = "urn:specc:schema:speculator:v1"
DRAFT: Final = "http://json-schema.org/draft-07/schema#"
MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that canonical JSON (RFC 8785) holds exactly; the bound of all that have no closer one."""

Schema = dict[str, Any]
_ORDER: Final = ("description", "type", "const", "enum", "anyOf", "default", "required", "additionalProperties")


def build_schema() -> Schema:
    """Return the language's JSON Schema (Draft-07): a tree without references, every field described.

    A tagged union becomes `allOf` of `if`/`then`: with `oneOf`, validators can only say that no branch fits.
    """
    from specc.core.language.models import Spec

    return {"$schema": DRAFT, "$id": ID, "title": "A speculator, version 1 of the language", **tree_of(Spec)}


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
    here = Path(__file__).resolve().parent
    candidates = [here / "published" / file, *(parent / "schema" / file for parent in here.parents[4:6])]
    for path in candidates:
        if path.is_file():
            return path
    raise SpeccError(f"the published schema `{file}` is not where specc was installed",
                     hint="install specc again; in a checkout, `make schema` writes it")  # fmt: skip


@cache
def published_schema() -> Schema:
    """Return the schema that `check` validates against, which is the one that editors read."""
    return json.loads(published_path().read_text(encoding="utf-8"))


def fields(schema: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Schema, bool]]:
    """Return every field by its dotted path (`data.sources.file` for a field of a list's items).

    The flag says whether the mapping that holds the field requires it.
    """
    found: dict[str, tuple[Schema, bool]] = {}
    for branch in (schema, *_branches(schema)):
        for name, item in branch.get("properties", {}).items():
            path = f"{prefix}.{name}" if prefix else name
            required = name in branch.get("required", ())
            if path not in found or ("description" in item and "const" not in item):  # a tag, with all it can be
                found[path] = (item, required)
            found |= fields(item, path)
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
