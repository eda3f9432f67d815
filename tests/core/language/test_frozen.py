"""What a release of the language took, every later one takes: each version's schema and good specs, kept as they were.

`tests/specs/frozen/1.0` holds the schema of version 1.0 and specs that it took, all fields among them. To add 1.1:

    mkdir -p tests/specs/frozen/1.1/good
    cp schema/speculator.v1.schema.json tests/specs/frozen/1.1/speculator.schema.json
    cp tests/specs/good/*.yaml specs/*.yaml tests/specs/frozen/1.1/good

Nothing else is to be written, and what stands in such a folder is never changed again. Version 1.0 alone, a candidate
until the first release of specc, may be replaced until then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from jsonschema import Draft7Validator

from specc.core.language import Document, check
from specc.core.language.check import schema_errors
from specc.core.language.schema import fields, published_schema
from specc.core.language.words import choices, types_of

FROZEN: Final = Path(__file__).resolve().parents[2] / "specs" / "frozen"
VERSIONS: Final = sorted(path for path in FROZEN.iterdir() if path.is_dir())
GOOD: Final = sorted(FROZEN.glob("*/good/*.yaml"))


def name(path: Path) -> str:
    return path.relative_to(FROZEN).as_posix()


def frozen_schema(version: Path) -> dict[str, Any]:
    return json.loads((version / "speculator.schema.json").read_text())


def test_every_version_has_its_schema_and_its_specs() -> None:
    assert VERSIONS
    for version in VERSIONS:
        assert frozen_schema(version)["$id"] == published_schema()["$id"]
        assert len([path for path in GOOD if version in path.parents]) >= 10


@pytest.mark.parametrize("path", GOOD, ids=name)
def test_what_a_version_took_is_taken_today(path: Path) -> None:
    document = Document.read(path)
    assert Draft7Validator(frozen_schema(path.parents[1])).is_valid(document.data), "it was never good"
    assert schema_errors(document) == []
    assert check(path)


@pytest.mark.parametrize("version", VERSIONS, ids=name)
def test_no_field_and_no_value_of_a_version_is_gone(version: Path) -> None:
    today = fields(published_schema())
    for path, (rule, required) in fields(frozen_schema(version)).items():
        assert path in today, f"{path} is gone"
        now, now_required = today[path]
        assert set(choices(rule)) <= set(choices(now)), f"{path} takes fewer values"
        assert types_of(rule) <= types_of(now), f"{path} takes fewer kinds of values"
        assert required or not now_required, f"{path} must be given now"


@pytest.mark.parametrize("version", VERSIONS, ids=name)
def test_the_specs_of_a_version_write_every_field_that_it_had(version: Path) -> None:
    written: set[str] = set()
    for path in version.glob("good/*.yaml"):
        written |= _written(Document.read(path).data)
    assert set(fields(frozen_schema(version))) - written == set()


def _written(value: Any, prefix: str = "") -> set[str]:
    """Return the dotted paths of all keys, without the indexes of lists."""
    if isinstance(value, list):
        return set().union(*(_written(item, prefix) for item in value))
    if not isinstance(value, dict):
        return set()
    paths = {f"{prefix}.{key}" if prefix else key: inner for key, inner in value.items()}
    return set(paths).union(*(_written(inner, path) for path, inner in paths.items()))
