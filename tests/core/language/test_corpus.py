"""Three validators, one schema: check-jsonschema, jsonschema-rs and our own check agree on every spec, file by file.

check-jsonschema is what a hook or another project's CI would run: a reader of YAML and a validator that are not ours.
jsonschema-rs is a validator alone, and judges the data that our reader reads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from specc.core.errors import Position, SpeccError
from specc.core.language import Document, check
from specc.core.language.check import schema_errors
from specc.core.language.schema import published_path, published_schema

ROOT: Final = Path(__file__).resolve().parents[3]
GOOD: Final = sorted([*(ROOT / "tests/specs/good").rglob("*.yaml"), *(ROOT / "specs").glob("*.yaml")])
ENDLESS: Final = "yaml-laughs"
"""A thousand million values through aliases: check-jsonschema counts them one by one, and takes minutes."""
BAD: Final = [path for path in sorted((ROOT / "tests/specs/bad").rglob("*.yaml")) if path.stem != ENDLESS]
READ_OTHERWISE: Final[Mapping[str, str]] = {
    "yaml-cycle": "an alias inside its own anchor is YAML, and makes a mapping that holds itself; a spec is a tree",
    "underscores-in-number": "`8_192` is a number in YAML 1.1 and a string since 1.2; ruamel.yaml takes it for one",
}
"""Bad files that the reader of check-jsonschema reads otherwise than ours, with the reason; it accepts them."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def refused() -> set[str]:
    """What check-jsonschema refuses, in one run: what it cannot read, and what the schema is against."""
    names = [name(path) for path in [*GOOD, *BAD]]
    command = [sys.executable, "-m", "check_jsonschema", "-o", "json", "--schemafile", str(published_path()), *names]
    report = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=False).stdout)
    return {item["filename"] for item in [*report["errors"], *report["parse_errors"]]}


def here(error: SpeccError, path: Path) -> bool:
    """Tell whether an error is of the file itself, and not of one that it extends."""
    return not isinstance(error.where, Position) or Path(error.where.file) == path


def read(path: Path) -> Document | None:
    try:
        return Document.read(path)
    except SpeccError:
        return None


READ: Final = [path for path in [*GOOD, *BAD] if read(path) is not None]
UNREAD: Final = [path for path in BAD if read(path) is None]


def test_the_corpus_has_all_kinds() -> None:
    assert len(GOOD) >= 12
    assert len(READ) >= 60
    assert len(UNREAD) >= 15
    assert set(READ_OTHERWISE) <= {path.stem for path in BAD}


@pytest.mark.parametrize("path", READ, ids=name)
def test_all_three_say_the_same(path: Path, refused: set[str]) -> None:
    document = Document.read(path)
    ours = not schema_errors(document)
    assert jsonschema_rs.Draft7Validator(published_schema()).is_valid(document.data) == ours
    assert (name(path) not in refused) == (ours or path.stem in READ_OTHERWISE)
    assert ours or path in BAD


@pytest.mark.parametrize("path", READ, ids=name)
def test_another_reader_of_yaml_1_2_reads_the_same(path: Path) -> None:
    same = Document.read(path).data == YAML(typ="safe").load(path.read_text())
    assert same == (path.stem not in READ_OTHERWISE)


@pytest.mark.parametrize("path", UNREAD, ids=name)
def test_what_we_cannot_read_others_refuse_too(path: Path, refused: set[str]) -> None:
    assert (name(path) not in refused) == (path.stem in READ_OTHERWISE)


@pytest.mark.parametrize("path", READ, ids=name)
def test_an_id_says_whether_others_refuse_a_file_too(path: Path, refused: set[str]) -> None:
    """`E01` is of the schema; what has no such error is bad by what no schema can say: rules, matrices, data, facts."""
    said: list[str] = []
    try:
        check(path, files=True)
    except SpeccError as error:
        said = [str(item.id) for item in error.errors if here(item, path)]
    by_schema = path.stem not in READ_OTHERWISE and any(item.startswith("E01") for item in said)
    assert (name(path) in refused) == by_schema
