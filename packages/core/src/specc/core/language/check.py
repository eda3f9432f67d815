"""Check a spec: the published schema first, then the models, then the rules; all errors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from specc.core.errors import Position, SpeccError, SpeccErrors
from specc.core.language.document import Document
from specc.core.language.extends import EXTENDS, merge
from specc.core.language.matrix import expand
from specc.core.language.node import KeyPath
from specc.core.language.paths import check_paths
from specc.core.language.rules import Rules

if TYPE_CHECKING:
    from pydantic import ValidationError

    from specc.core.language.models import Spec


@dataclass(frozen=True, slots=True)
class Checked:
    """A build of a spec that is valid by itself: its text, and its name if the spec has a matrix."""

    document: Document
    spec: Spec
    build: str = ""


def check(path: Path, *, files: bool = False) -> tuple[Checked, ...]:
    """Read and check a spec, and return its builds: one, or those of its matrix in their order.

    Raises `SpeccErrors` with everything that is wrong, in the order of the file. `files` asks for the files that the
    spec names to be there too. Nothing is run and no network is used.
    """
    leaf = Document.read(path)
    own = schema_errors(leaf) if EXTENDS in leaf.data else []
    try:
        found = check_document(merge(leaf, path), files=files)
    except SpeccError as error:
        raise in_order([*own, *error.errors], leaf.name) from None
    if own:  # what only the whole makes good would be an error in every editor
        raise in_order(own, leaf.name)
    return found


def check_document(document: Document, *, files: bool = False) -> tuple[Checked, ...]:
    """Check a document that was read."""
    if errors := schema_errors(document):
        raise in_order([*errors, *check_paths(document, exist=files)], document.name)
    builds, errors = expand(document)
    found: list[Checked] = []
    for name, build in builds.items():
        errors += check_paths(build, exist=files)
        try:
            found.append(Checked(build, _spec(build), name))
        except SpeccErrors as several:
            errors += several.errors
        else:
            errors += _rules(found[-1]).check()
    if errors:
        raise in_order(errors, document.name)
    return tuple(found)


def rules_with_facts(checked: Checked, verifier_config: Mapping[str, Any]) -> list[SpeccError]:
    """Return what is wrong with a build given `verifier.config` of the resolved spec, in the order of the file."""
    found = _rules(checked).check_with(verifier_config)
    return in_order(found, checked.document.name).errors if found else []


def schema_errors(document: Document, only: str | None = None) -> list[SpeccError]:
    """Return where a document differs from the published schema, in designed words; `only` a section is all it has."""
    from jsonschema import Draft7Validator

    from specc.core.language.schema import one_section, published_schema

    schema = published_schema() if only is None else one_section(published_schema(), only)
    found = list(Draft7Validator(schema).iter_errors(document.data))  # pyright: ignore[reportUnknownMemberType]
    if not found:
        return []
    from specc.core.language.diagnose import Diagnosis

    return Diagnosis(document, schema).errors(found)


def in_order(errors: list[SpeccError], first: str) -> SpeccErrors:
    """Return errors as one: those of the file `first`, then those of other files, in their order, each once.

    A union and its member say the same, and so do the builds of a matrix.
    """

    def place(error: SpeccError) -> tuple[bool, str, int, int]:
        where = error.where
        if not isinstance(where, Position):
            return False, "", 0, 0
        return where.file != first, where.file, where.line, where.column

    once = {(str(error.where), error.message): error for error in errors}
    return SpeccErrors(sorted(once.values(), key=place))


def _spec(document: Document) -> Spec:
    from pydantic import ValidationError

    from specc.core.language.models import Spec

    try:
        return Spec.model_validate(_whole(document.data))
    except ValidationError as error:
        # A value of the matrix that does not go with another one, or a model that is stricter than JSON Schema can say.
        raise in_order(schema_errors(document) or _of_models(document, error), document.name) from error


def _of_models(document: Document, error: ValidationError) -> list[SpeccError]:
    from specc.core.language.diagnose import Diagnosis
    from specc.core.language.schema import published_schema

    diagnosis = Diagnosis(document, published_schema())
    return [diagnosis.wrong(_place(item["loc"]), item["input"]) for item in error.errors(include_url=False)]


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
    return rules_of(checked.document, checked.spec.values())


def rules_of(document: Document, values: Mapping[str, Any]) -> Rules:
    """Return the rules between fields over the tree of a spec's values; errors stand in `document`."""
    from specc.core.algorithms import algorithm

    return Rules(document, values, algorithm(values["draft"]["algorithm"]))
