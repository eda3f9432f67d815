"""`matrix` of a spec: values of several fields, and the builds that their combinations are."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.files import canonical
from specc.core.language.document import Document
from specc.core.language.node import Fields, KeyPath, Node
from specc.core.language.text import printable
from specc.core.language.words import listed

MATRIX: Final = "matrix"
INCLUDE, EXCLUDE = "include", "exclude"
MOST: Final = 10_000
"""Combinations that a matrix may have."""
SHOWN: Final = 20
"""Values that a hint lists."""

_WORD: Final = re.compile(r"[A-Za-z./][\w./-]*")

Combination = Fields
"""Values by the dotted paths of their fields, with the places where the matrix names them."""


def expand(document: Document) -> tuple[dict[str, Document], list[SpeccError]]:
    """Return the documents of all builds by their names, in the order of the matrix, and what is wrong with it.

    The document fits the schema. One without a matrix is a single build whose name is empty. A build's values stand
    where the matrix has them.
    """
    matrix = document.root.at((MATRIX,))
    if matrix is None:
        return {"": document}, []
    axes = {path: [(key, item) for item in node.items or ()] for path, (key, node) in (matrix.fields or {}).items()}
    included, excluded = ([entry.fields or {} for _, entry in axes.pop(name, [])] for name in (INCLUDE, EXCLUDE))
    errors = [*_nested(document, [axes, *included]), *_foreign(document, axes, excluded)]
    count = math.prod(map(len, axes.values()))
    if count > MOST:
        errors.append(document.error(f"the matrix has {count} combinations, and {MOST} are allowed", (MATRIX,),
                                     key=True, id="E0401", hint="give fewer values, or several specs"))  # fmt: skip
    if errors:
        return {}, errors
    every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    kept = [one for one in every if not any(_fits(entry, one) for entry in excluded)]
    errors += [
        document.error("no combination has these values", (MATRIX, EXCLUDE, index), id="E0404",
                       hint="remove the entry, or give values that the matrix has")
        for index, entry in enumerate(excluded) if not any(_fits(entry, one) for one in every)
    ]  # fmt: skip
    builds: dict[str, Document] = {}
    plain = document.root.without(MATRIX)
    for one in _with(kept, included, set(axes)):
        name = name_of({path: node.data() for path, (_, node) in one.items()})
        if name in builds:
            path, (_, node) = next(iter(one.items()))
            errors.append(node.start.error(f"`{printable(name, 120)}` is built twice", id="E0403",
                                           hint=f"give each value of `{path}` once"))  # fmt: skip
        builds[name] = Document(document.name, _put(plain, one))
    if not builds and not errors:
        errors.append(document.error("the matrix leaves no combination to be built", (MATRIX,), key=True, id="E0404",
                                     hint="`exclude` takes all of them away"))  # fmt: skip
    return builds, errors


def name_of(values: Mapping[str, Any]) -> str:
    """Return a build's name: `field=value` of all its fields in the order of their paths, values as canonical text."""
    return ",".join(f"{path}={text_of(values[path])}" for path in sorted(values))


def text_of(value: Any) -> str:
    """Return a value as it stands in a build's name: a word as it is, everything else as canonical JSON (RFC 8785)."""
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in ("true", "false", "null"):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return canonical(value).decode()


def value_of(text: str) -> str:
    """Return the text that a person wrote for a value (`1e-4`) as it stands in a build's name (`0.0001`)."""
    try:
        return text_of(json.loads(text))
    except ValueError:
        return text


def parts_of(name: str) -> list[str]:
    """Return the `field=value` of a build's name."""
    return re.split(r",(?=[a-z_.0-9]+=)", name) if name else []


def choose(names: Sequence[str], only: Collection[str]) -> list[str]:
    """Return those of a spec's builds that have all of some values, `field=value` or a whole name.

    A field may be given by the end of its path. Raises `SpeccError` (exit code 2) if no build has them.
    """
    found = list(names)
    for asked in only:
        field, _, text = asked.partition("=")
        wanted = f"{field}={value_of(text)}"
        found = [name for name in found if asked == name or any(_ends(part, wanted) for part in parts_of(name))]
        if not found:
            known = list(dict.fromkeys(part for name in names for part in parts_of(name)))
            raise SpeccError(f"no build has `{printable(asked)}`" if known else "the spec has no matrix to choose from",
                             hint=f"the matrix has {listed(known[:SHOWN])}" if known else "leave `--only` out",
                             code=Exit.USAGE)  # fmt: skip
    return found


def choose_one(names: Sequence[str], only: Collection[str]) -> str:
    """Return the one build that is meant; raises `SpeccError` (exit code 2) if several have the values, or none."""
    first, *others = choose(names, only)
    if others:
        raise SpeccError(f"the spec's matrix has {len(others) + 1} builds, and one is meant",
                         hint=f"choose it by its values, such as `--only {parts_of(first)[0]}`",
                         code=Exit.USAGE)  # fmt: skip
    return first


def _ends(part: str, wanted: str) -> bool:
    return part == wanted or part.endswith(f".{wanted}")


def _with(combinations: list[Combination], included: list[Combination], axes: set[str]) -> Iterator[Combination]:
    """Yield combinations with what is included, by the rule of a GitHub workflow's matrix.

    An entry is added to every combination of the axes whose values it does not change; one that can be added to none
    is a combination of its own. Values that an earlier entry added may be changed.
    """
    whole = [dict(one) for one in combinations]
    alone: list[Combination] = []
    for entry in included:
        own = {path: value for path, value in entry.items() if path in axes}
        fitting = [one for one in whole if _fits(own, one)]
        for one in fitting:
            one.update(entry)
        if not fitting:
            alone.append(entry)
    yield from whole
    yield from alone


def _fits(entry: Combination, combination: Combination) -> bool:
    """Tell whether a combination has all values of an entry."""
    return all(
        path in combination and text_of(node.data()) == text_of(combination[path][1].data())
        for path, (_, node) in entry.items()
    )


def _put(root: Node, combination: Combination) -> Node:
    for path, (key, node) in combination.items():
        root = root.put(tuple(path.split(".")), node, key)
    return root


def _nested(document: Document, groups: list[Mapping[str, Any]]) -> Iterator[SpeccError]:
    """Yield an error for each field of the matrix that is inside another one of it."""
    paths = dict.fromkeys(path for group in groups for path in group)
    for path in paths:
        outer = next((other for other in paths if path.startswith(other + ".")), None)
        if outer is not None:
            yield document.error(f"`{path}` is inside `{outer}`, and the matrix has both", (MATRIX, path), key=True,
                                 id="E0402", hint="give values of one of them")  # fmt: skip


def _foreign(document: Document, axes: Mapping[str, Any], excluded: list[Combination]) -> Iterator[SpeccError]:
    """Yield an error for each field that is excluded by its value and is none of the matrix."""
    for index, entry in enumerate(excluded):
        for path in entry:
            if path not in axes:
                place: KeyPath = (MATRIX, EXCLUDE, index, path)
                yield document.error(f"`{path}` is not a field of the matrix", place, key=True, id="E0404",
                                     hint="`exclude` names values of the matrix's own fields")  # fmt: skip
