"""Whatever is in the file: a `SpeccError` with a place inside it, or a spec; never anything else. 10,000 specs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specc.core.errors import Position, SpeccError
from specc.core.files import canonical, remove_tree
from specc.core.language import Document, check, rules_with_facts
from specc.core.language.check import schema_errors
from specc.core.language.explanations import EXPLANATIONS
from specc.core.language.text import Source

SPECS = Path(__file__).resolve().parents[2] / "specs"
TEXTS = [path.read_text() for path in sorted((SPECS / "good").glob("*.yaml"))]
WORDS = sorted({word for text in TEXTS for word in text.replace(":", " ").split()})
ODD = ["", "~", "1e400", ".nan", "-1", "0", "1.5", "99999999999999999999", "[]", "{}", "[[]]", "{a: b}", "*x", "&x 1",
       "!t 1", "'", '"', "\t", "- ", "? ", ": ", "#", "\u2028", "\x85", "\ufeff", "é😀", "<<: 1", "true", '"a\\n"', "|",
       ">", "%", "@", "`", "\x00", "---\n", "...\n", "2147483648", "0x", "0o9", "/abs", "~/x", "C:\\x"]  # fmt: skip
FACTS = {"num_hidden_layers": 4, "vocab_size": 16, "intermediate_size": 8, "max_position_embeddings": 32}


BASE = (SPECS / "good/minimal.yaml").read_text()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a spec is written again and again, beside one that it may go on from."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "minimal.yaml").write_text(BASE)
    yield folder / "s.yaml"
    remove_tree(folder)


def errors_of(spec: Path) -> list[SpeccError]:
    """Return the errors of a spec, or those that a verifier adds."""
    try:
        builds = check(spec, files=True)
    except SpeccError as error:
        return error.errors
    for build in builds:
        canonical(build.spec.values())  # whatever passes can be locked
    return [error for build in builds for error in rules_with_facts(build, FACTS)]


def hold(spec: Path, text: str, *, twice: bool = False) -> None:
    """Check a text and hold every error to a place inside it, or inside what it goes on from."""
    spec.write_bytes(text.encode(errors="surrogatepass"))
    lines = {str(spec): Source("", text.removeprefix("\ufeff")).lines,
             str(spec.parent / "minimal.yaml"): Source("", BASE).lines}  # fmt: skip
    errors = errors_of(spec)
    for error in errors:
        assert error.id in EXPLANATIONS
        assert "\x1b" not in error.render()
        if error.where == str(spec):
            continue  # an empty file has no place, nor has one that is not UTF-8 anywhere
        assert isinstance(error.where, Position)
        inside = lines[error.where.file]
        assert 1 <= error.where.line <= len(inside)
        width = len(inside[error.where.line - 1])
        assert 1 <= error.where.column <= width + 1
        assert error.where.column + error.where.length <= width + 2
    if twice:
        assert [error.render() for error in errors_of(spec)] == [error.render() for error in errors]


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


@pytest.mark.parametrize("seed", range(8))
def test_mutated_specs(spec: Path, seed: int) -> None:
    draw = random.Random(20261123 + seed)  # noqa: S311 - any numbers, the same every time
    for number in range(1150):
        hold(spec, mutate(draw.choice(TEXTS), draw), twice=number % 5 == 0)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([*ODD, *WORDS, "\n", " ", "  ", ": ", ", ", "{", "}", "[", "]"]), max_size=30))
def test_any_pieces_of_yaml(spec: Path, pieces: list[str]) -> None:
    hold(spec, "".join(pieces))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=60))
def test_any_text(spec: Path, text: str) -> None:
    hold(spec, text)
    hold(spec, "name: " + text)


def test_what_the_schema_takes_the_models_take(spec: Path) -> None:
    """jsonschema and pydantic never disagree on a mutated spec: no error comes from the models alone."""
    draw = random.Random(7)  # noqa: S311 - any numbers, the same every time
    passed = 0
    for _ in range(600):
        spec.write_bytes(mutate(draw.choice(TEXTS), draw).encode(errors="surrogatepass"))
        try:
            if schema_errors(Document.read(spec)):
                continue
        except SpeccError:
            continue
        passed += 1
        assert not [error.render() for error in errors_of(spec) if str(error.id).startswith("E01")]
    assert passed > 50
