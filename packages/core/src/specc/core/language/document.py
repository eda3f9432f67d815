"""A spec as text: its data, and for every value the place in the file where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from specc.core.errors import Position, SpeccError
from specc.core.language.node import KeyPath, Node
from specc.core.language.reader import Reader
from specc.core.language.text import Source, Span

MAX_BYTES: Final = 1 << 20
BOM: Final = "\ufeff"


class Document:
    """A spec that was read: plain data with positions, from one YAML file or from several.

    `data` is what is said, as dicts, lists and scalars of YAML 1.2's core schema. Positions of values that came by an
    alias are those of the alias, positions inside them those of the anchor; of what came from a spec that this one
    extends, they are in that file.
    """

    def __init__(self, name: str, root: Node) -> None:
        self.name = name
        self.root = root
        self.data: dict[str, Any] = root.data()

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> Document:
        """Read one file, called `name` if that is not its path.

        Raises `SpeccError`, with the place where there is one, if it is not a YAML mapping.
        """
        name = name or str(path)
        return cls.parse(_text(path, name), name)

    @classmethod
    def parse(cls, text: str, name: str) -> Document:
        """Read a text that stands in the file `name`."""
        root = Reader(Source(name, text.removeprefix(BOM))).read()
        if root is None or (root.value is None and root.items is None and root.fields is None):
            raise SpeccError("the file is empty", where=name, hint="`specc init FILE` writes a spec to start from",
                             id="E0005")  # fmt: skip
        if root.fields is None:
            raise (root.span or root.start).error("a spec is a mapping of sections", id="E0005",
                                                  hint="its first line is `version: 1`")  # fmt: skip
        return cls(name, root)

    def position(self, path: KeyPath, key: bool = False) -> Position:
        """Return where the value at `path` stands, or its key, or else the nearest thing above that is there.

        A block and an empty value are pointed at by their keys.
        """
        return self.span(path, key).position()

    def error(self, message: str, path: KeyPath, *, key: bool = False, note: str | None = None,
              hint: str | None = None, id: str | None = None) -> SpeccError:  # noqa: A002  # fmt: skip
        """Return an error at the value (or the key) at `path`, with its line and a caret."""
        return self.span(path, key).error(message, note=note, hint=hint, id=id)

    def written(self) -> set[str]:
        """Return the dotted paths of the values that the spec states itself, merged ones included."""
        return set(self.root.written())

    def span(self, path: KeyPath, key: bool = False) -> Span:
        """Return the place that `position` says."""
        node, best = self.root, _first(self.root)
        for index, part in enumerate(path):
            last = index == len(path) - 1
            if node.fields is not None and isinstance(part, str) and part in node.fields:
                name, node = node.fields[part]
                best = name if (key and last) or node.span is None else node.span
            elif node.items is not None and isinstance(part, int) and 0 <= part < len(node.items):
                node = node.items[part]
                best = node.span or _first(node)
            else:
                break
        return best


def _first(node: Node) -> Span:
    """Return the first key of a block, which stands for the whole where it has no key of its own."""
    keys = (name for name, _ in (node.fields or {}).values())
    return node.span or next((name for name in keys if name.line == node.start.line), node.start)


def _text(path: Path, name: str) -> str:
    """Return a file's text; raises `SpeccError` if it cannot be read, is too large or is not UTF-8."""
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
        place = Span(Source(name, data.decode(errors="replace")), line, len(before) - before.rfind("\n") - 1, 1)
        raise place.error("the file is not UTF-8 from here on", hint="save it as UTF-8", id="E0001") from None
