"""From the text of a YAML file to nodes with places: YAML 1.2's core schema, bounded, without constructors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from specc.core.errors import SpeccError
from specc.core.language.node import Node, Scalar
from specc.core.language.syntax import explain_syntax
from specc.core.language.text import Source, Span, printable

MAX_DEPTH: Final = 100
MAX_NODES: Final = 20_000
"""Nodes of a file with all its aliases expanded."""
MAX_INTEGER: Final = 2**63 - 1

_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_BASED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(slots=True)
class _Open:
    """A list or a mapping that the reader is inside of."""

    node: Node
    anchor: str | None
    key: tuple[str, Span] | None = None
    merging: bool = False
    merges: list[tuple[Span, Node]] = field(default_factory=list[tuple[Span, Node]])


class Reader:
    """Builds nodes from parser events, one pass, no recursion; raises `SpeccError` at the first thing amiss."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.root: Node | None = None
        self.nodes = 0

    def read(self) -> Node | None:
        """Return the root, or None for a text without a document."""
        documents = 0
        for event in self._events():
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error("a spec is one YAML document, and a second one starts here", event, "E0005",
                                      hint="give each spec a file of its own")  # fmt: skip
                version: Any = event.version
                if version is not None and tuple(version) != (1, 2):
                    raise self._error("specs are YAML 1.2", event, "E0005", hint="remove the `%YAML` line")
            elif isinstance(event, AliasEvent):
                self._alias(event)
            elif isinstance(event, ScalarEvent):
                self._scalar(event)
            elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
                self._start(event)
            elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                self._end(event)
        return self.root

    def _events(self) -> Iterator[Event]:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(self.source.text, Loader=loader)
        except yaml.YAMLError as error:
            raise explain_syntax(self.source, error) from error

    def _scalar(self, event: ScalarEvent) -> None:
        plain = event.style in (None, "")
        value: str = event.value
        span = self._span(event)
        self._check_tag(event)
        if self._wants_key():
            key_span = span if value or not plain else replace(span, length=1)
            self._key(value, key_span, merging=plain and value == "<<")
            return
        resolved = self._resolve(value, event) if plain else value
        visible = None if plain and not value else span
        self._put(Node(value=resolved, start=span, span=visible), event.anchor, event)

    def _start(self, event: MappingStartEvent | SequenceStartEvent) -> None:
        self._check_tag(event)
        if self._wants_key():
            span = self._span(event)
            templating = self.source.line(span.line)[: span.column + 1].endswith("{{")
            hint = "specs are not templates: write the value itself" if templating else None
            raise self._error("a key must be a word", event, "E0008", hint=hint)
        if len(self.open) >= MAX_DEPTH:
            raise self._error(f"a spec is at most {MAX_DEPTH} levels deep", event, "E0004")
        span = self._span(event)
        node = Node(start=span, span=span if event.flow_style else None)
        if isinstance(event, MappingStartEvent):
            node.fields = {}
        else:
            node.items = []
        self.open.append(_Open(node, event.anchor))

    def _end(self, event: MappingEndEvent | SequenceEndEvent) -> None:
        opened = self.open.pop()
        node = opened.node
        if node.span is not None:
            stop = self._span(event)
            same = stop.line == node.span.line
            width = stop.column + 1 if same else len(self.source.lines[node.span.line].rstrip())
            node.span = replace(node.span, length=width - node.span.column)
        if node.fields is not None:
            self._merge(opened, node.fields)
        children = node.items if node.items is not None else [child for _, child in (node.fields or {}).values()]
        node.size = 1 + sum(child.size for child in children)
        node.height = 1 + max((child.height for child in children), default=0)
        self._put(node, opened.anchor, event)

    def _alias(self, event: AliasEvent) -> None:
        name = str(event.anchor)
        if self._wants_key():
            raise self._error("an alias cannot be a key", event, "E0008", hint="write the key itself")
        if any(opened.anchor == name for opened in self.open):
            raise self._error(f"the anchor `&{name}` contains itself", event, "E0008")
        if name not in self.anchors:
            raise self._error(f"there is no anchor `&{name}` above", event, "E0008",
                              hint="an anchor stands before its aliases")  # fmt: skip
        span = self._span(event)
        self._put(replace(self.anchors[name], start=span, span=span), None, event)

    def _put(self, node: Node, anchor: str | None, event: Event) -> None:
        """Give a finished node to what it stands in."""
        self.nodes += node.size if isinstance(event, AliasEvent) else 1
        if self.nodes > MAX_NODES:
            raise self._error(f"a spec has at most {MAX_NODES} values, aliases expanded", event, "E0004")
        if len(self.open) + node.height > MAX_DEPTH:
            raise self._error(f"a spec is at most {MAX_DEPTH} levels deep, aliases expanded", event, "E0004")
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        opened = self.open[-1]
        if opened.node.items is not None:
            opened.node.items.append(node)
        elif opened.key is not None and opened.node.fields is not None:
            name, span = opened.key
            opened.key = None
            if opened.merging:
                opened.merges.append((span, node))
            else:
                opened.node.fields[name] = (span, node)

    def _key(self, name: str, span: Span, *, merging: bool) -> None:
        opened = self.open[-1]
        fields = opened.node.fields or {}
        same = opened.merges[0] if merging and opened.merges else None if merging else fields.get(name)
        if same is not None:
            earlier = same[0]
            raise span.error(f"`{printable(name)}` stands twice in one mapping", id="E0003",
                             note=f"it stands on line {earlier.line + 1} too")  # fmt: skip
        opened.key, opened.merging = (name, span), merging

    def _merge(self, opened: _Open, fields: dict[str, tuple[Span, Node]]) -> None:
        """Apply `<<`: what the mapping says itself wins, then the earlier of several merged mappings."""
        for span, node in opened.merges:
            for merged in node.items if node.items is not None else [node]:
                if merged.fields is None:
                    wrong = node.span or span
                    raise wrong.error("`<<` takes a mapping, or a list of mappings", id="E0008")
                for name, entry in merged.fields.items():
                    fields.setdefault(name, entry)

    def _wants_key(self) -> bool:
        return bool(self.open) and self.open[-1].node.fields is not None and self.open[-1].key is None

    def _check_tag(self, event: ScalarEvent | MappingStartEvent | SequenceStartEvent) -> None:
        tag: str | None = event.tag
        if tag not in (None, "!"):
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(f"tags such as `{printable(shown)}` are not part of the language", event, "E0006",
                              hint="remove the tag; quotes make a string of anything")  # fmt: skip

    def _resolve(self, text: str, event: ScalarEvent) -> Scalar:
        """Return a plain scalar's value by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema)."""
        if text in _WORDS:
            return _WORDS[text]
        whole = _INTEGER.fullmatch(text)
        if whole or _BASED.fullmatch(text):
            # Longer digits than a 64-bit integer's are not converted: that takes quadratic time.
            value = (int(text) if whole else int(text, 0)) if len(text) <= 24 else MAX_INTEGER + 1
            if abs(value) > MAX_INTEGER:
                raise self._error("the number is too large", event, "E0007", hint="integers have 64 bits")
            return value
        if _INFINITE.fullmatch(text):
            raise self._error(f"`{text}` is not a number that a spec can hold", event, "E0007")
        if _FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise self._error("the number is too large", event, "E0007", hint="floats have 64 bits")
            return number
        return text

    def _span(self, event: Event) -> Span:
        start: Any = event.start_mark
        end: Any = event.end_mark
        line = self.source.lines[start.line] if start.line < len(self.source.lines) else ""
        stop = end.column if end.line == start.line else len(line.rstrip())
        return Span(self.source, start.line, start.column, max(1, stop - start.column))

    def _error(self, message: str, event: Event, id: str, hint: str | None = None) -> SpeccError:  # noqa: A002
        return self._span(event).error(message, hint=hint, id=id)
