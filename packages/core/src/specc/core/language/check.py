"""Check a spec: the published schema first, then the models, then the rules; all errors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from specc.core.errors import Position, SpeccError, SpeccErrors
from specc.core.language.document import Document, KeyPath
from specc.core.language.rules import Rules, check_paths

if TYPE_CHECKING:
    from specc.core.language.models import Spec


@dataclass(frozen=True, slots=True)
class Checked:
    """A spec that is valid by itself, with its text."""

    document: Document
    spec: Spec


def check(path: Path, *, files: bool = False) -> Checked:
    """Read and check a spec; raises `SpeccErrors` with everything that is wrong, in the order of the file.

    `files` asks for the files that the spec names to be there too. Nothing is run and no network is used.
    """
    return check_document(Document.read(path), files=files)


def check_document(document: Document, *, files: bool = False) -> Checked:
    """Check a document that was read."""
    paths = check_paths(document, exist=files)
    errors = schema_errors(document)
    if errors:
        raise in_order([*errors, *paths])
    spec = _spec(document)
    errors = _rules(Checked(document, spec)).check()
    if errors or paths:
        raise in_order([*errors, *paths])
    return Checked(document, spec)


def rules_with_facts(checked: Checked, verifier_config: Mapping[str, Any]) -> list[SpeccError]:
    """Return what is wrong with a spec given `verifier.config` of the resolved spec, in the order of the file."""
    found = _rules(checked).check_with(verifier_config)
    return in_order(found).errors if found else []


def schema_errors(document: Document) -> list[SpeccError]:
    """Return where a document differs from the published schema, in designed words."""
    from jsonschema import Draft7Validator

    from specc.core.language.schema import published_schema

    schema = published_schema()
    found = list(Draft7Validator(schema).iter_errors(document.data))  # pyright: ignore[reportUnknownMemberType]
    if not found:
        return []
    from specc.core.language.diagnose import Diagnosis

    return Diagnosis(document, schema).errors(found)


def in_order(errors: list[SpeccError]) -> SpeccErrors:
    """Return errors as one, in the order of the file, each once (a union and its member say the same)."""

    def place(error: SpeccError) -> tuple[int, int]:
        where = error.where
        return (where.line, where.column) if isinstance(where, Position) else (0, 0)

    once = {(str(error.where), error.message): error for error in errors}
    return SpeccErrors(sorted(once.values(), key=place))


def _spec(document: Document) -> Spec:
    from pydantic import ValidationError

    from specc.core.language.models import Spec

    try:
        return Spec.model_validate(_whole(document.data))
    except ValidationError as error:  # where a model is stricter than JSON Schema can say
        from specc.core.language.diagnose import Diagnosis
        from specc.core.language.schema import published_schema

        diagnosis = Diagnosis(document, published_schema())
        found = [diagnosis.wrong(_place(item["loc"]), item["input"]) for item in error.errors(include_url=False)]
        raise in_order(found) from error


def _place(loc: KeyPath) -> KeyPath:
    """Return pydantic's path without the name of the union's member that it puts after `draft`."""
    return (loc[0], *loc[2:]) if loc[:1] == ("draft",) else loc


def _whole(data: Any) -> Any:
    """Return the data with whole floats as integers: to JSON Schema 5.0 is an integer, to pydantic it is not."""
    if isinstance(data, dict):
        return {key: _whole(value) for key, value in cast("dict[str, Any]", data).items()}
    if isinstance(data, list):
        return [_whole(value) for value in cast("list[Any]", data)]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def _rules(checked: Checked) -> Rules:
    from specc.core.algorithms import algorithm

    values = checked.spec.values()
    return Rules(checked.document, values, algorithm(values["draft"]["algorithm"]))
