"""The values of a file, each with its place: what a reader makes, and what is put together from several files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from specc.core.language.text import Span

Scalar = str | int | float | bool | None
Key = str | int
KeyPath = tuple[Key, ...]
"""Where a value stands in the data: keys of mappings and indexes of lists, from the root."""


Fields = dict[str, tuple[Span, "Node"]]
"""A mapping's values by their keys, each with the place of its key."""


@dataclass(slots=True)
class Node:
    """A value of a file: a scalar, a list or a mapping.

    `start` is where it begins. `span` is where a person would point: the value itself, or for a block and for an empty
    value None, in which case the key says it better. `size` and `height` count nodes and levels with aliases expanded.
    Once read, a node is never changed: an alias and what a spec extends are the same nodes at several places.
    """

    start: Span
    value: Scalar = None
    items: list[Node] | None = None
    fields: Fields | None = None
    span: Span | None = None
    size: int = 1
    height: int = 1

    def data(self) -> Any:
        """Return the node as plain dicts, lists and scalars."""
        if self.fields is not None:
            return {key: node.data() for key, (_, node) in self.fields.items()}
        return [node.data() for node in self.items] if self.items is not None else self.value

    def at(self, path: KeyPath) -> Node | None:
        """Return the value at a path, None if there is none."""
        node: Node | None = self
        for part in path:
            if node is not None and node.fields is not None and isinstance(part, str):
                node = node.fields[part][1] if part in node.fields else None
            elif node is not None and node.items is not None and isinstance(part, int) and part < len(node.items):
                node = node.items[part]
            else:
                return None
        return node

    def put(self, path: KeyPath, value: Node, key: Span | None = None) -> Node:
        """Return a copy with another value at a path, and the mappings around it where there are none.

        The key's place stays where it was; what is new there has `key`, or else the value's own place.
        """
        if not path:
            return value
        part, *rest = path
        if isinstance(part, int):
            items = list(self.items or ())
            items[part] = items[part].put(tuple(rest), value, key)
            return replace(self, items=items)
        fields = dict(self.fields or {})
        span, inner = fields.get(part) or (key or value.start, Node(start=value.start, fields={}))
        fields[part] = (span, inner.put(tuple(rest), value, key))
        return replace(self, value=None, items=None, fields=fields)

    def without(self, name: str) -> Node:
        """Return a copy of a mapping that lacks one key."""
        return replace(self, fields={key: entry for key, entry in (self.fields or {}).items() if key != name})

    def written(self, prefix: str = "") -> Iterator[str]:
        """Yield the dotted paths of the values; lists are values, a mapping is none: what it leaves out is not said."""
        for name, (_, child) in (self.fields or {}).items():
            path = f"{prefix}{name}"
            if child.fields is None:
                yield path
            else:
                yield from child.written(path + ".")
