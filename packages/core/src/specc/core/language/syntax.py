"""What is wrong with a text that is not YAML, in words, from what the parser says of it."""

from __future__ import annotations

import re
from typing import Final

from yaml.error import MarkedYAMLError, YAMLError

from specc.core.errors import SpeccError
from specc.core.language.text import Source, Span

_MESSAGES: Final = (
    # (what PyYAML or libyaml says, our sentence, what to do)
    ("mapping values are not allowed", "a `:` where no key can stand",
     "put a value that holds `: ` into quotes, and indent the keys of one mapping alike"),
    ("could not find expected ':'", "this line is no `key: value`", "put a `:` and a space after the key"),
    ("unexpected end of stream", "the quotes are never closed", "close them with the same quote"),
    ("unknown escape character", "an unknown escape inside double quotes",
     "use single quotes, or write a backslash twice"),
    ("expected ',' or ']'", "a list in brackets is never closed", "put commas between its items and a `]` at its end"),
    ("expected ',' or '}'", "a mapping in braces is never closed",
     "put commas between its fields and a `}` at its end"),
    ("undefined tag handle", "tags are not part of the language", "put text that starts with `!` into quotes"),
    ("alphabetic or numeric character", "an alias or an anchor without a name",
     "put text that starts with `*` or `&` into quotes"),
    ("incompatible YAML document", "specs are YAML 1.2", "remove the `%YAML` line"),
    ("node content", "a value is missing here", "close every bracket, and give every comma a value"),
    ("document start", "the indentation falls back further than the file's first line", "indent top-level keys alike"),
    ("expected key", "the indentation fits no mapping above", "indent the keys of one mapping alike"),
    ("block end", "the indentation fits no mapping above", "indent the keys of one mapping alike"),
)  # fmt: skip
_CROWDED: Final = re.compile(r"\s*(- )?[\w-]+:(?=[^\s:/])")  # `epochs:3` is one word, and the next line pays for it
_QUOTED: Final = "put text that starts with it into quotes"


def explain_syntax(source: Source, error: YAMLError) -> SpeccError:
    """Return the error for a text that the YAML parser refuses, at the place where it stopped."""
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if not isinstance(error, MarkedYAMLError) or mark is None:
        return _unprintable(source, error)
    start = error.context_mark or mark
    for number in (mark.line, start.line):
        if source.line(number).startswith(("<<<<<<< ", "=======", ">>>>>>> ")):
            return Span(source, number, 0, 7).error("merge conflict markers", id="E0002",
                                                hint="settle the conflict and remove the marker lines")  # fmt: skip
    problem = f"{error.problem} {error.context or ''}"
    found = source.lines[mark.line][mark.column : mark.column + 1] if mark.line < len(source.lines) else ""
    span = _before_end(Span(source, mark.line, mark.column, 1))
    if "cannot start any token" in problem:
        if found == "\t":
            return span.error("a tab cannot indent YAML", hint="indent with spaces", id="E0002")
        return span.error(f"`{found}` cannot start a value", hint=_QUOTED, id="E0002")
    above = source.lines[span.line - 1] if span.line else ""
    if "mapping values" in problem and (crowded := _CROWDED.match(above)):
        place = Span(source, span.line - 1, crowded.end() - 1, 1)
        return place.error("a space is missing after the `:`", id="E0002")
    for words, message, hint in _MESSAGES:
        if words in problem:
            if "never closed" in message:
                span = Span(source, start.line, start.column, 1)
            return span.error(message, hint=hint, id="E0002")
    return span.error(f"not YAML: {error.problem}", id="E0002")


def _before_end(span: Span) -> Span:
    """Return `span`, or the end of the last line that says something if the parser ran past it."""
    lines = span.source.lines
    line = min(span.line, len(lines) - 1)
    while line > 0 and not lines[line].strip():
        line -= 1
    return span if line == span.line else Span(span.source, line, max(0, len(lines[line].rstrip()) - 1), 1)


def _unprintable(source: Source, error: YAMLError) -> SpeccError:
    """Return the error for a character that YAML does not allow; the parser gives its offset, not its line."""
    code = getattr(error, "character", None)
    found = chr(code) if isinstance(code, int) else None
    for number, line in enumerate(source.lines):
        column = line.find(found) if found else -1
        if column >= 0:
            what = f"the character U+{ord(line[column]):04X} cannot stand in YAML"
            return Span(source, number, column, 1).error(what, hint="remove it", id="E0002")
    return Span(source, 0, 0, 1).error("not YAML: a character that cannot be read", id="E0002")
