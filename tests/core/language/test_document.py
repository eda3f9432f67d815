from __future__ import annotations

from pathlib import Path

import pytest

from specc.core.errors import Position, SpeccError
from specc.core.language import Document

TEXT = """\
a: &base {x: 1, y: [1, {z: two}]}
b:
  <<: *base
  x: 0x1F
list:
  - name: first
    empty:
  - *base
"""


def read(text: str) -> object:
    return Document.parse(text, "s.yaml").data


def refused(text: str) -> SpeccError:
    with pytest.raises(SpeccError) as caught:
        Document.parse(text, "s.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E4", 10000.0), (".5", 0.5), ("-1.", -1.0), ("+12", 12), ("007", 7),
        ("0o17", 15), ("0x1F", 31),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("y", "y"), ("1_000", "1_000"), ("0b1", "0b1"), ("1:30", "1:30"),
        ("2026-11-23", "2026-11-23"), ("-", None), ("'1'", "1"), ('"true"', "true"), ("1.2.3", "1.2.3"), ("e5", "e5"),
        ("-0x1", "-0x1"), ("=", "="), ("0o8", "0o8"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    if text == "-":  # an item of a list, and no scalar
        assert read("a:\n-\n") == {"a": [None]}
        return
    found = read(f"a: {text}\n")
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


def test_merges_take_what_the_mapping_does_not_say_itself() -> None:
    assert read(TEXT) == {
        "a": {"x": 1, "y": [1, {"z": "two"}]},
        "b": {"x": 31, "y": [1, {"z": "two"}]},
        "list": [{"name": "first", "empty": None}, {"x": 1, "y": [1, {"z": "two"}]}],
    }
    assert read("a: &a {x: 1, z: 1}\nb: &b {x: 2, y: 2}\nc: {y: 3, <<: [*b, *a]}\n") == {
        "a": {"x": 1, "z": 1}, "b": {"x": 2, "y": 2}, "c": {"y": 3, "x": 2, "z": 1}}  # fmt: skip
    assert read("'<<': 1\n") == {"<<": 1}


@pytest.mark.parametrize(
    ("path", "line", "column", "length"),
    [
        (("a", "x"), 1, 14, 1), (("a",), 1, 4, 30), (("a", "y", 1, "z"), 1, 28, 3),
        (("b", "x"), 4, 6, 4), (("b", "y"), 1, 20, 13), (("b",), 2, 1, 1),
        (("list",), 5, 1, 4), (("list", 0), 6, 5, 4), (("list", 0, "empty"), 7, 5, 5), (("list", 1), 8, 5, 5),
        (("b", "nowhere", "deep"), 2, 1, 1), (("nowhere",), 1, 1, 1), ((), 1, 1, 1), (("list", 9), 5, 1, 4),
    ],
)  # fmt: skip
def test_positions_are_where_a_person_would_point(
    path: tuple[str | int, ...], line: int, column: int, length: int
) -> None:
    assert Document.parse(TEXT, "s.yaml").position(path) == Position("s.yaml", line, column, length)


def test_positions_of_keys_and_lines() -> None:
    document = Document.parse(TEXT, "specs/s.yaml")
    assert document.position(("b", "x"), key=True) == Position("specs/s.yaml", 4, 3, 1)
    error = document.error("no", ("b", "x"), note="why", hint="do", id="E0101")
    assert error.render() == "error: specs/s.yaml:4:6: no\n  4 |   x: 0x1F\n    |      ^^^^ why\n\nhint: do"
    assert error.id == "E0101"


def test_written_names_values_and_not_the_mappings_around_them() -> None:
    document = Document.parse(TEXT + "none: {}\n", "s.yaml")
    assert document.written() == {"a.x", "a.y", "b.x", "b.y", "list"}


def test_a_byte_order_mark_and_windows_lines_move_nothing() -> None:
    document = Document.parse("\ufeffa: 1\r\nb: 2\r\n", "s.yaml")
    assert document.data == {"a": 1, "b": 2}
    assert str(document.position(("a",))) == "s.yaml:1:4"
    assert str(document.position(("b",))) == "s.yaml:2:4"
    assert document.error("no", ("a",)).excerpt == "a: 1"


def test_positions_count_characters_not_bytes() -> None:
    assert Document.parse('a: {"été": 1, b: 2}\n', "s.yaml").position(("a", "b")).column == 18
    assert Document.parse('a: {"😀": 1, b: 2}\n', "s.yaml").position(("a", "b")).column == 16


@pytest.mark.parametrize(
    ("text", "id", "words"),
    [
        ("a: 1\n\tb: 2\n", "E0002", "a tab"),
        ("a: 1\na: 2\n", "E0003", "stands twice"),
        ("a: {b: 1, b: 2}\n", "E0003", "stands twice"),
        ("a: &a {<<: *a}\n", "E0008", "contains itself"),
        ("a: &a [*a]\n", "E0008", "contains itself"),
        ("a: *b\nb: &b 1\n", "E0008", "no anchor"),
        ("a: !!str 1\n", "E0006", "`!!str`"),
        ("a: !env HOME\n", "E0006", "`!env`"),
        ("a: !<tag:yaml.org,2002:python/name:os.system> x\n", "E0006", "tags"),
        ("a: .inf\n", "E0007", ".inf"),
        ("a: -.Inf\n", "E0007", ".Inf"),
        ("a: .nan\n", "E0007", ".nan"),
        ("a: 1e999\n", "E0007", "too large"),
        ("a: " + "9" * 5000 + "\n", "E0007", "too large"),
        ("a: -9223372036854775809\n", "E0007", "too large"),
        ("a: " + "[" * 200, "E0004", "levels deep"),
        ("a: &a " + "[" * 60 + "1" + "]" * 60 + "\nb: " + "[" * 60 + "*a" + "]" * 60, "E0004", "levels deep"),
        ("a: 1\n--- \nb: 1\n", "E0005", "one YAML document"),
        ("%YAML 1.1\n---\na: 1\n", "E0005", "YAML 1.2"),
        ("", "E0005", "empty"),
        ("null\n", "E0005", "empty"),
        ("text\n", "E0005", "a mapping"),
        ("[a: 1]\n", "E0005", "a mapping"),
        ("? [a]\n: 1\n", "E0008", "a word"),
        ("a: &x 1\n*x : 2\n", "E0008", "alias"),
        ("a: \x01\n", "E0002", "U+0001"),
        ("a: '\n", "E0002", "never closed"),
        ("a: [1, 2\n", "E0002", ""),
        ("a: @here\n", "E0002", "`@`"),
        ("a: `here`\n", "E0002", "cannot start"),
        ("a: %here\n", "E0002", "cannot start"),
    ],
)  # fmt: skip
def test_refused_texts_say_why_at_a_place(text: str, id: str, words: str) -> None:  # noqa: A002
    error = refused(text)
    assert error.id == id
    assert words in error.message
    lines = text.split("\n")
    if isinstance(error.where, Position):
        assert 1 <= error.where.line <= len(lines)
        assert error.where.column <= len(lines[error.where.line - 1]) + 1


def test_a_billion_laughs_cost_nothing() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert refused("\n".join(rows)).id == "E0004"
    merges = ["a: &a {" + ", ".join(f"k{i}: 1" for i in range(1000)) + "}"]
    merges += [f"b{i}: {{<<: *a}}" for i in range(30_000)]
    assert refused("\n".join(merges)).id == "E0004"


def test_controls_in_a_line_do_not_reach_the_terminal() -> None:
    error = refused('a: "\\e[31m"\nb: *gone  # \x85\n')
    assert "\x1b" not in error.render()
    error = Document.parse('"\\e[31mx": 1\n', "s.yaml").error("m", ("x",))
    assert "\x1b" not in error.render()


@pytest.mark.parametrize(
    ("data", "id"),
    [(b"a: \xff\n", "E0001"), (b"\xfe\xff\x00a", "E0001"), (b"a: 1\n" * 300_000, "E0004"), (b"\x00", "E0002")],
)
def test_unreadable_files(tmp_path: Path, data: bytes, id: str) -> None:  # noqa: A002
    path = tmp_path / "s.yaml"
    path.write_bytes(data)
    with pytest.raises(SpeccError) as caught:
        Document.read(path)
    assert caught.value.id == id


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(SpeccError, match=words) as caught:
            Document.read(path)
        assert caught.value.id == "E0001"
        assert str(path) in caught.value.render()
