"""What a lock keeps of the values that a spec leaves to us, so that another release does not change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import ValidationError

from specc.core.errors import SpeccError
from specc.core.language import Spec

ABSENT: Final = object()
TAGS: Final = ("train.optimizer.name",)
"""Choices with a default: they decide which other keys their section has."""
CHOICES: Final = {"draft": "draft.algorithm", "train.optimizer": "train.optimizer.name", "train.epochs": "train.steps"}
"""Sections and values, each with the key that decides what their defaults are."""
LENGTH: Final = "data.sequence_length"
"""The one derived value that no algorithm has a say in."""
ASKED: Final = "export.speculative_tokens"
GRID: Final = "evaluate.grid.speculative_tokens"
"""Derived from the one above."""
WHOLE: Final = "train.loss"
"""A mapping that is one value: the weights of one default do not mix with those of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The values of a lock, and those of them that its spec wrote."""

    values: Mapping[str, Any]
    written: Mapping[str, Any]

    def tags(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choices that neither the lock's spec nor this one writes."""
        found = {tag: get(self.values, tag) for tag in TAGS if self._left(tag, written)}
        return {tag: value for tag, value in found.items() if value is not ABSENT}

    def default(self, path: str, tree: Mapping[str, Any], written: Mapping[str, Any]) -> Any:
        """Return the lock's value of a default, or `ABSENT` if the spec of the lock had a say in it.

        `tree` and `written` are those of the spec as it is now.
        """
        if stated(path, self.written):
            return ABSENT
        for section, key in CHOICES.items():
            inside = path == section or path.startswith(section + ".")
            if inside and not self._left(key, written) and get(tree, key) != get(self.values, key):
                return ABSENT
        return get(self.values, path)

    def derived(self, path: str, tree: Mapping[str, Any], written: Mapping[str, Any]) -> Any:
        """Return the lock's value of a derived value, or `ABSENT` if what it depends on is another than then.

        All of them depend on the verifier's configuration, and those of the algorithm on what the spec says of the
        draft.
        """
        same = self.same_verifier(tree) and written.get(path) == self.written.get(path)
        if path == GRID:
            same = same and written.get(ASKED) == self.written.get(ASKED)
        if path != LENGTH:
            same = same and _below("draft.", written) == _below("draft.", self.written)
        return get(self.values, path) if same else ABSENT

    def same_verifier(self, tree: Mapping[str, Any]) -> bool:
        """Tell whether values have the verifier's configuration that the lock has."""
        return tree["verifier"]["config"] == self.values["verifier"]["config"]

    def spec(self) -> Spec:
        """Return the spec that the lock was made from; raises `SpeccError` if this release does not take it."""
        try:
            return spec_of({**self.written, **self.tags(self.written)})
        except ValidationError as error:
            path = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
            raise SpeccError(
                f"the lock is of another release: this specc does not take its `{path}`",
                hint="install the specc that wrote it, or write it anew with `specc lock`",
            ) from error

    def _left(self, path: str, written: Mapping[str, Any]) -> bool:
        """Tell whether the spec leaves a value to us, now as then."""
        return not stated(path, written) and not stated(path, self.written)


def spec_of(written: Mapping[str, Any]) -> Spec:
    """Return the spec that writes values at dotted paths, in the models' own form; raises pydantic's error."""
    tree = dict[str, Any]()
    for path, value in written.items():
        put(tree, path, value)
    return Spec.model_validate(tree)


def stated(path: str, written: Mapping[str, Any]) -> bool:
    """Tell whether a spec writes the value at `path`, or something above it or below it."""
    return path in written or not _above(path).isdisjoint(written) or path in _sections(frozenset(written))


@cache
def _above(path: str) -> frozenset[str]:
    """Return the paths of the mappings that the value at a path is in."""
    return frozenset(path.rsplit(".", end)[0] for end in range(1, path.count(".") + 1))


@cache
def _sections(written: frozenset[str]) -> frozenset[str]:
    """Return the paths of all mappings in which something is written."""
    return frozenset[str]().union(*map(_above, written))


def get(tree: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, `ABSENT` if there is none."""
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path."""
    *parents, last = path.split(".")
    node: Any = tree
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value


def _below(prefix: str, written: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in written.items() if path.startswith(prefix)}
