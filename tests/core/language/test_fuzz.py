"""Whatever is in the file: a `SpeccError` with a place inside it, or a spec; never anything else."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specc.core.errors import Position, SpeccError, SpeccErrors
from specc.core.files import canonical
from specc.core.language import EXPLANATIONS, Document, rules_with_facts
from specc.core.language.check import check_document, schema_errors
from specc.core.language.text import Source

SPECS = Path(__file__).resolve().parents[2] / "specs"
TEXTS = [path.read_text() for path in sorted((SPECS / "good").glob("*.yaml"))]
WORDS = sorted({word for text in TEXTS for word in text.replace(":", " ").split()})
ODD = ["", "~", "1e400", ".nan", "-1", "0", "1.5", "99999999999999999999", "[]", "{}", "[[]]", "{a: b}", "*x", "&x 1",
       "!t 1", "'", '"', "\t", "- ", "? ", ": ", "#", "\u2028", "\x85", "\ufeff", "é😀", "<<: 1", "true", '"a\\n"', "|",
       ">", "%", "@", "`", "\x00", "---\n", "...\n", "2147483648", "0x", "0o9", "/abs", "~/x", "C:\\x"]  # fmt: skip
FACTS = {"num_hidden_layers": 4, "vocab_size": 16, "intermediate_size": 8, "max_position_embeddings": 32}


def errors_of(document: Document) -> list[SpeccError]:
    """Return the errors of a document."""
    try:
        check_document(document)
    except SpeccErrors as several:
        return several.errors
    return []


def hold(text: str) -> None:
    """Check a text and hold every error to a place inside it."""
    lines = Source("s.yaml", text.removeprefix("\ufeff")).lines
    try:
        checked = check_document(Document.parse(text, "s.yaml"), files=True)
    except SpeccErrors as several:
        errors = several.errors
    except SpeccError as error:
        errors = [error]
    else:
        errors = rules_with_facts(checked, FACTS)
        canonical(checked.spec.values())  # whatever passes can be locked
    for error in errors:
        assert error.id in EXPLANATIONS
        assert "\x1b" not in error.render()
        if error.where == "s.yaml":
            continue  # an empty file has no place
        assert isinstance(error.where, Position)
        assert 1 <= error.where.line <= len(lines)
        width = len(lines[error.where.line - 1])
        assert 1 <= error.where.column <= width + 1
        assert error.where.column + error.where.length <= width + 2


def mutate(text: str, draw: random.Random) -> str:
    """Return a good spec with one to three small harms done to it."""
    for _ in range(draw.randint(1, 3)):
        lines = text.split("\n")
        at = draw.randrange(len(lines))
        match draw.randrange(7):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, draw.choice(lines))
            case 2:
                lines[at] = draw.choice(["", " ", "  ", "\t"]) + lines[at]
            case 3:
                key, colon, _ = lines[at].partition(": ")
                lines[at] = key + colon + draw.choice([*ODD, *WORDS])
            case 4:
                cut = draw.randint(0, len(lines[at]))
                lines[at] = lines[at][:cut] + draw.choice([*ODD, *WORDS]) + lines[at][cut:]
            case 5:
                cut = draw.randint(0, len(lines[at]))
                lines[at] = lines[at][:cut]
            case _:
                lines[at] = lines[at].replace(
                    draw.choice("abeorst_:- {[,"), draw.choice(["", "x", ":", "{", "]", "-"]), 1
                )
        text = "\n".join(lines)
    return text


def test_mutated_specs() -> None:
    draw = random.Random(20261123)  # noqa: S311 - any numbers, the same every time
    for _ in range(600):
        hold(mutate(draw.choice(TEXTS), draw))


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([*ODD, *WORDS, "\n", " ", "  ", ": ", ", ", "{", "}", "[", "]"]), max_size=30))
def test_any_pieces_of_yaml(pieces: list[str]) -> None:
    hold("".join(pieces))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    hold(text)
    hold("name: " + text)


def test_what_the_schema_takes_the_models_take() -> None:
    """jsonschema and pydantic never disagree on a mutated spec: no error comes from the models alone."""
    draw = random.Random(7)  # noqa: S311 - any numbers, the same every time
    passed = 0
    for _ in range(600):
        try:
            document = Document.parse(mutate(draw.choice(TEXTS), draw), "s.yaml")
        except SpeccError:
            continue
        if schema_errors(document):
            continue
        passed += 1
        assert not [error.render() for error in errors_of(document) if not str(error.id).startswith("E02")]
    assert passed > 50
