"""A spec as text: its data, and for every value the place in the file where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from specc.core.errors import Position, SpeccError
from specc.core.language.reader import Node, Reader
from specc.core.language.text import Source, Span

MAX_BYTES: Final = 1 << 20
BOM: Final = "\ufeff"

Key = str | int
KeyPath = tuple[Key, ...]
"""Where a value stands in the data: keys of mappings and indexes of lists, from the root."""


class Document:
    """A YAML file that was read: plain data with positions.

    `data` is what the file says, as dicts, lists and scalars of YAML 1.2's core schema. Positions of values that
    came by an alias are those of the alias, positions inside them those of the anchor.
    """

    def __init__(self, source: Source, root: Node) -> None:
        self.name = source.name
        self.data: dict[str, Any] = root.data()
        self._source = source
        self._root = root

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file; raises `SpeccError`, with the place where there is one, if it is not a YAML mapping."""
        return cls.parse(_text(path), str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> Document:
        """Read a text that stands in the file `name`."""
        source = Source(name, text.removeprefix(BOM))
        root = Reader(source).read()
        if root is None or (root.value is None and root.items is None and root.fields is None):
            raise SpeccError("the file is empty", where=name, hint="`specc init FILE` writes a spec to start from",
                             id="E0005")  # fmt: skip
        if root.fields is None:
            raise source.error("a spec is a mapping of sections", root.span or root.start, id="E0005",
                               hint="its first line is `version: 1`")  # fmt: skip
        return cls(source, root)

    def position(self, path: KeyPath, key: bool = False) -> Position:
        """Return where the value at `path` stands, or its key, or else the nearest thing above that is there.

        A block and an empty value are pointed at by their keys.
        """
        return self._source.position(self._span(path, key))

    def line(self, number: int) -> str:
        """Return a line's text, counted from 1; tabs and control characters are replaced one for one."""
        return self._source.line(number - 1)

    def error(self, message: str, path: KeyPath, *, key: bool = False, note: str | None = None,
              hint: str | None = None, id: str | None = None) -> SpeccError:  # noqa: A002  # fmt: skip
        """Return an error at the value (or the key) at `path`, with its line and a caret."""
        return self._source.error(message, self._span(path, key), note=note, hint=hint, id=id)

    def written(self) -> set[str]:
        """Return the dotted paths of the values that the file states itself, merged ones included.

        Lists are values; a mapping is none: what it leaves out is not written.
        """
        found: set[str] = set()

        def walk(node: Node, prefix: str) -> None:
            for name, (_, child) in (node.fields or {}).items():
                path = f"{prefix}{name}"
                if child.fields is None:
                    found.add(path)
                else:
                    walk(child, path + ".")

        walk(self._root, "")
        return found

    def _span(self, path: KeyPath, key: bool) -> Span:
        node, best = self._root, self._first(self._root)
        for index, part in enumerate(path):
            last = index == len(path) - 1
            if node.fields is not None and isinstance(part, str) and part in node.fields:
                name, node = node.fields[part]
                best = name if (key and last) or node.span is None else node.span
            elif node.items is not None and isinstance(part, int) and 0 <= part < len(node.items):
                node = node.items[part]
                best = node.span or self._first(node)
            else:
                break
        return best

    def _first(self, node: Node) -> Span:
        """Return the first key of a block, which stands for the whole where it has no key of its own."""
        starts = [name for name, _ in (node.fields or {}).values() if name.line == node.start.line]
        return node.span or (starts[0] if starts else node.start)


def _text(path: Path) -> str:
    """Return a file's text; raises `SpeccError` if it cannot be read, is too large or is not UTF-8."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpeccError("there is no such file", where=name, id="E0001",
                         hint=f"`specc init {name}` writes a spec to start from") from None  # fmt: skip
    except IsADirectoryError:
        raise SpeccError("this is a folder, not a spec", where=name, hint=f"name the file: `{name}/….yaml`",
                         id="E0001") from None  # fmt: skip
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpeccError(f"the file cannot be read: {reason.lower()}", where=name, id="E0001") from error
    if len(data) > MAX_BYTES:
        raise SpeccError("a spec has at most 1 MiB", where=name, hint="data belongs in files that the spec names",
                         id="E0004")  # fmt: skip
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        line = before.count("\n")
        span = Span(line, len(before) - before.rfind("\n") - 1, 1)
        source = Source(name, data.decode(errors="replace"))
        raise source.error("the file is not UTF-8 from here on", span, hint="save it as UTF-8", id="E0001") from None
