from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from specc.core.algorithms import ALGORITHMS
from specc.core.language import Document, build_schema
from specc.core.language import schema as module
from specc.core.language.schema import fields, published_path, published_schema, render_schema


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from nodes(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from nodes(value)


def test_the_published_schema_is_what_the_models_say(root: Path) -> None:
    assert (root / "schema" / module.FILE).read_text() == render_schema()
    assert published_schema() == build_schema()


def test_it_is_draft_07_with_a_versioned_id() -> None:
    schema = build_schema()
    Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert re.search(r":v1$", schema["$id"])


def test_every_field_is_described_and_every_optional_one_has_a_default_or_says_so() -> None:
    found = fields(build_schema())
    assert len(found) > 60
    for path, (rule, required) in found.items():
        assert rule.get("description"), path
        assert rule["description"].endswith("."), path
        section = "object" in (rule.get("type") or ())
        told = "default" in rule or "Default:" in rule["description"] or section or path.startswith("train.loss.")
        assert required or told, path


def test_no_auto_titles_no_references_and_no_unions_without_a_tag() -> None:
    schema = build_schema()
    assert set(schema["else"]) == {"required", "properties"}  # what a spec that extends another need not have
    for node in nodes({key: value for key, value in schema.items() if key not in ("title", "else")}):
        assert not {"$ref", "oneOf", "$defs", "discriminator", "prefixItems"} & node.keys()
        assert not isinstance(node.get("title"), str)
        if "properties" in node and "additionalProperties" not in node:
            (tag,) = node["properties"]  # a tagged union, or its `if`
            assert "allOf" in node or "const" in node["properties"][tag]


def test_the_draft_is_if_then_over_the_table_of_algorithms() -> None:
    draft = build_schema()["properties"]["draft"]
    assert draft["properties"]["algorithm"]["enum"] == list(ALGORITHMS)
    assert [item["if"]["properties"]["algorithm"]["const"] for item in draft["allOf"]] == list(ALGORITHMS)
    for item, row in zip(draft["allOf"], ALGORITHMS.values(), strict=True):
        assert set(item["then"]["properties"]) == {
            field.alias or name for name, field in row.section.model_fields.items()
        }
        assert item["then"]["additionalProperties"] is False


def test_integers_are_bounded_by_what_canonical_json_holds() -> None:
    for node in nodes(build_schema()):
        if "integer" in (node.get("type") or ()) and "const" not in node:
            assert node["maximum"] <= 2**53 - 1


def test_a_wheel_reads_its_own_copy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["schema"] == "specc/core/language/published"
    installed = tmp_path / "site-packages" / "specc" / "core" / "language"
    copy = installed / "published" / module.FILE
    copy.parent.mkdir(parents=True)
    copy.write_text(render_schema())
    monkeypatch.setattr(module, "__file__", str(installed / "schema.py"))
    assert published_path() == copy
    copy.unlink()
    with pytest.raises(module.SpeccError, match="published schema"):
        published_path()


def test_a_checkout_reads_the_committed_file(root: Path) -> None:
    assert published_path() == root / "schema" / module.FILE


def test_the_schema_alone_refuses_what_the_schema_can_say(root: Path) -> None:
    validator = Draft7Validator(build_schema())
    for name in ("unknown-field", "reserved-names", "out-of-bounds", "missing-sections", "validation-source"):
        document = Document.read(root / "tests" / "specs" / "bad" / f"{name}.yaml")
        assert list(validator.iter_errors(document.data)), name
