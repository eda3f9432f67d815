"""What `specc check` found, in the forms that a person, a script and a pull request read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from specc.core.errors import Exit, Position, SpeccError, SpeccErrors

SARIF_VERSION: Final = "2.1.0"
SARIF_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
SOURCE_ROOT: Final = "%SRCROOT%"
"""What relative URIs of a SARIF log are relative to, by its readers' convention: the root of the checkout."""
UNNUMBERED: Final = "specc"
"""The SARIF rule of errors without an id: a result must name a rule (SARIF 2.1.0, section 3.27.5)."""
_DATA: Final = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY: Final = {**_DATA, ":": "%3A", ",": "%2C"}
"""The escapes of a workflow command's message and of its properties."""


@dataclass(frozen=True, slots=True)
class Good:
    """A spec that is valid: its file and the speculator's name."""

    file: str
    name: str


@dataclass(frozen=True, slots=True)
class Finding:
    """An error, and the spec that was checked when it came up."""

    spec: Path
    error: SpeccError

    @property
    def position(self) -> Position | None:
        """Return the place in the text, None if the error is about the file as a whole."""
        where = self.error.where
        return where if isinstance(where, Position) else None

    @property
    def file(self) -> str:
        """Return the file that the error is in, relative to the working directory: the spec if it names none."""
        where = self.error.where
        return os.path.relpath(where.file if isinstance(where, Position) else where or self.spec)

    @property
    def text(self) -> str:
        """Return the message, the note and the hint, a line each: an annotation stands apart from its source."""
        hint = f"hint: {self.error.hint}" if self.error.hint else None
        return "\n".join(line for line in (self.error.message, self.error.note, hint) if line)


@dataclass(frozen=True, slots=True)
class Report:
    """All that a check found, in the order of the specs and of each file."""

    good: tuple[Good, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[SpeccError]:
        """Return what is wrong."""
        return [finding.error for finding in self.findings]

    @property
    def code(self) -> int:
        """Return the exit code."""
        return max((error.code for error in self.errors), default=Exit.OK)


@dataclass(frozen=True, slots=True)
class Format:
    """A form of a report; `words` are for standard error, everything else is data."""

    render: Callable[[Report], str]
    words: bool = False


def text(report: Report) -> str:
    """Return the errors as every command says them."""
    return SpeccErrors(report.errors).render() + "\n" if report.errors else ""


def as_json(report: Report) -> str:
    """Return one JSON object: `specs` that are valid, or the `errors`."""
    good = [{"file": item.file, "name": item.name} for item in report.good]
    errors = [error.as_json() for error in report.errors]
    return _json({"errors": errors} if errors else {"specs": good})


def github(report: Report) -> str:
    """Return a workflow command an error, which GitHub shows at the line of the pull request that it is about.

    `endColumn` is the column after the last character, as in SARIF.
    """
    return "".join(_command(finding) + "\n" for finding in report.findings)


def sarif(report: Report) -> str:
    """Return a SARIF log (https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html), for code scanning.

    Its rules are all errors that `specc explain` knows, whether they came up or not.
    """
    from importlib import metadata

    from specc.core.language.explanations import EXPLANATIONS

    texts = {**EXPLANATIONS, UNNUMBERED: "The error is not one of the language, and has no id."}
    driver = {
        "name": "specc",
        "version": metadata.version("specc"),
        "rules": [_rule(name, explanation) for name, explanation in texts.items()],
    }
    indexes = {name: index for index, name in enumerate(texts)}
    results = [_result(finding, indexes) for finding in report.findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return _json({"$schema": SARIF_SCHEMA, "version": SARIF_VERSION, "runs": [run]})


FORMATS: Final[Mapping[str, Format]] = {
    "text": Format(text, words=True),
    "json": Format(as_json),
    "github": Format(github),
    "sarif": Format(sarif),
}


def _command(finding: Finding) -> str:
    place, properties = finding.position, {"file": finding.file}
    if place is not None:
        properties |= {"line": str(place.line), "col": str(place.column), "endColumn": str(_end(place))}
    if finding.error.id is not None:
        properties["title"] = finding.error.id
    listed = ",".join(f"{key}={_escaped(value, _PROPERTY)}" for key, value in properties.items())
    return f"::error {listed}::{_escaped(finding.text, _DATA)}"


def _escaped(value: str, escapes: Mapping[str, str]) -> str:
    return value.translate(str.maketrans(dict(escapes)))


def _rule(name: str, explanation: str) -> dict[str, Any]:
    """Return a rule with each of the texts that code scanning asks for."""
    said = {"text": explanation}
    return {"id": name, "shortDescription": said, "fullDescription": said, "help": said}


def _result(finding: Finding, indexes: Mapping[str, int]) -> dict[str, Any]:
    known = finding.error.id
    name = known if known and known in indexes else UNNUMBERED
    location: dict[str, Any] = {
        "artifactLocation": {"uri": quote(os.fsencode(Path(finding.file).as_posix())), "uriBaseId": SOURCE_ROOT}
    }
    if (place := finding.position) is not None:
        location["region"] = {"startLine": place.line, "startColumn": place.column, "endColumn": _end(place)}
    return {
        "ruleId": name,
        "ruleIndex": indexes[name],
        "level": "error",
        "message": {"text": finding.text},
        "locations": [{"physicalLocation": location}],
    }


def _end(place: Position) -> int:
    """Return the column after the last character, counted from 1."""
    return place.column + max(1, place.length)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
