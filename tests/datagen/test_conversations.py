"""The stage `conversations`: shapes, errors, duplicates, splits and shards."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from small import write_prompts
from specc.core.contracts import Failure, Note, StageResult
from specc.core.errors import SpeccError
from specc.core.files import canonical, entries, sha256_file
from specc.datagen.conversations import conversations, identified, is_validation
from specc.datagen.formats import parse, read_lines
from specc.datagen.rows import Row, canonical_text, read_rows, read_shards
from specc.datagen.shapes import ShapeError, read_row
from stages import make_job, run_here, run_process

U, A, S = "user", "assistant", "system"


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def job(folder: Path, sources: list[Path], **data: Any):
    def item(path: Path) -> dict[str, Any]:
        return {"file": path.name, "sha256": sha256_file(path), "rows": data.get("rows")}

    validation: list[Path] = data.get("validation", [])
    params = {
        "data": {
            "sources": [item(path) for path in sources],
            "validation": {"share": data.get("share", 0.2), "sources": [item(path) for path in validation]},
            "system_prompt": data.get("system_prompt"),
            "shard_rows": data.get("shard_rows", 8),
        }
    }
    files = {path.name: path for path in [*sources, *validation]}
    return make_job("conversations", folder, params, files=files, output=data.get("output", "output"))


def build(folder: Path, sources: list[Path], **data: Any) -> tuple[list[Row], dict[str, Any]]:
    made = job(folder, sources, **data)
    run_here(conversations, made)
    output = Path(made.output)
    rows = [row for shard in read_shards(output) for row in read_rows(output / shard.file)]
    return rows, json.loads((output / "index.json").read_text())


def write(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SHAPES = [
    ({"messages": turns((U, "a"), (A, "b"))}, turns((U, "a"), (A, "b"))),
    ({"messages": turns((S, "s"), (U, "a"), (A, "b"), (U, "c"))}, turns((S, "s"), (U, "a"), (A, "b"), (U, "c"))),
    (
        {"messages": [{"role": U, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        turns((U, "a\nb")),
    ),
    (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        turns((S, "s"), (U, "a"), (A, "b")),
    ),
    ({"conversations": turns((U, "a"), (A, "b"))}, turns((U, "a"), (A, "b"))),
    ({"instruction": "a", "input": "", "output": "b"}, turns((U, "a"), (A, "b"))),
    ({"instruction": "a", "input": "x", "output": "b", "system": "s"}, turns((S, "s"), (U, "a\n\nx"), (A, "b"))),
    ({"instruction": "a", "context": "x", "response": "b"}, turns((U, "a\n\nx"), (A, "b"))),
    ({"instruction": "a", "system": ""}, turns((U, "a"))),
    ({"prompt": "a", "completion": "b"}, turns((U, "a"), (A, "b"))),
    ({"prompt": "a", "response": "b"}, turns((U, "a"), (A, "b"))),
    ({"prompt": turns((U, "a")), "completion": turns((A, "b"))}, turns((U, "a"), (A, "b"))),
    ({"prompt": "a"}, turns((U, "a"))),
    ({"prompt": "a", "completion": None, "id": 7}, turns((U, "a"))),
    ({"text": "a"}, turns((U, "a"))),
    ({"question": "a"}, turns((U, "a"))),
]


@pytest.mark.parametrize(("row", "expected"), SHAPES)
def test_shapes(row: object, expected: list[dict[str, str]]) -> None:
    assert read_row(row)["messages"] == expected


REFUSED = [
    ([], "a row is an object, and this is a list"),
    ({}, "the row has no keys"),
    ({"body": "a", "title": "b"}, "unknown shape with the keys `body`, `title`"),
    ({"messages": "a"}, "`messages` is text and no list"),
    ({"messages": []}, "the conversation has no user turn"),
    ({"messages": turns((S, "s"))}, "the conversation has no user turn"),
    ({"messages": turns((A, "a"))}, "turn 1 is of the role `assistant`, and `user` was expected"),
    ({"messages": turns((S, "s"), (U, "a"), (U, "b"))}, "turn 3 is of the role `user`, and `assistant` was expected"),
    ({"messages": turns((U, "a"), (S, "b"))}, "turn 2 is of the role `system`, and `assistant` was expected"),
    ({"messages": turns((U, " \n"))}, "the content of `messages[0]` is empty"),
    ({"messages": turns(("wizard", "a"))}, "`messages[0]` has the unknown role `wizard`"),
    (
        {"messages": [*turns((U, "a")), {"role": "tool", "content": "b"}]},
        "turn 2 is a tool's result, and the turn before it has no `tool_calls`",
    ),
    ({"messages": [{"role": U, "content": None}]}, "the content of `messages[0]` is null and no text"),
    (
        {"messages": [*turns((U, "a")), {"role": A, "content": "b", "tool_calls": [{}]}]},
        "`messages[1].tool_calls[0]` names no function",
    ),
    (
        {"messages": [{"role": U, "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "`messages[0]` has a part of type `input_audio`; only text and images are in this release",
    ),
    ({"messages": turns((U, "a")), "videos": ["x.mp4"]}, "`videos` is not in this release"),
    ({"instruction": "a", "history": [["b", "c"]]}, "`history` is not in this release"),
    ({"prompt": 3}, "the content of `prompt` is a number and no text"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_refused_shapes(row: object, message: str) -> None:
    with pytest.raises(ShapeError) as raised:
        read_row(row)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ', "not JSON: Expecting value at column 12"),
        (b'{"prompt": "a\xff"}', "not UTF-8 at byte 14 of the line"),
        (b'{"prompt": "\\ud800"}', "half a surrogate pair (`\\ud800` to `\\udfff`) is no text"),
        (b"[" * 100_000, "not JSON that can be read: nested too deeply or with too long a number"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON that can be read: nested too deeply or with too long a number"),
        (None, "the line is longer than 64 MiB"),
    ],
)
def test_lines_that_are_no_rows(line: bytes | None, message: str) -> None:
    with pytest.raises(ShapeError) as raised:
        identified(parse(line))
    assert str(raised.value) == message


def test_all_bad_rows_are_reported_at_once(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", [{"prompt": "a"}, {"nothing": 1}])
    bad = write(tmp_path / "bad.jsonl", [{"prompt": f"b{i}"} if i % 2 else {"prompt": ""} for i in range(24)])
    with pytest.raises(SpeccError) as raised:
        build(tmp_path, [good, bad])
    lines = raised.value.message.splitlines()
    assert lines[0] == "13 rows of 26 cannot be used"
    assert lines[1] == "  good.jsonl:2: unknown shape with the keys `nothing`"
    assert lines[2] == "  bad.jsonl:1: the content of `prompt` is empty"
    assert lines[10] == "  bad.jsonl:17: the content of `prompt` is empty"
    assert lines[11:] == ["  and 3 more"]
    assert '{"prompt"}' in (raised.value.hint or "")


def test_the_artifact(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", 20)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n  \n" + path.read_bytes().splitlines()[3] + b"\r\n")
    rows, index = build(tmp_path, [path], system_prompt="Be brief.")
    assert {key: index[key] for key in ("rows", "read", "duplicates")} == {"rows": 20, "read": 21, "duplicates": 1}
    assert [shard["rows"] for shard in index["shards"]] == [8, 8, 4]
    assert [row["row"] for row in rows] == list(range(20))
    assert [row["line"] for row in rows] == list(range(1, 21))
    assert rows[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    as_read = rows[0]["messages"][1:]
    assert rows[0]["id"] == hashlib.sha256(canonical(as_read)).hexdigest()
    assert index["train"] == sum(row["split"] == "train" for row in rows)
    assert index["validation"] == 20 - index["train"] > 0
    for shard in index["shards"]:
        assert sha256_file(tmp_path / "output" / shard["file"]) == shard["sha256"]


def test_a_rows_own_system_turn_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"messages": turns((S, "mine"), (U, "a"))}, {"prompt": "b"}, {"prompt": "c"}])
    rows, _ = build(tmp_path, [path], system_prompt="yours", share=0.0)
    assert [row["messages"][0]["content"] for row in rows] == ["mine", "yours", "yours"]


def test_rows_limits_a_source(tmp_path: Path) -> None:
    rows, index = build(tmp_path, [write_prompts(tmp_path / "p.jsonl", 20)], rows=5, share=0.0)
    assert index["read"] == len(rows) == 5


def test_a_file_that_moved_since_the_lock_is_refused(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", 20)
    made = job(tmp_path, [path], rows=5)
    path.write_text(path.read_text() + '{"prompt": "later"}\n')
    with pytest.raises(SpeccError, match="not the file that the lock names"):
        run_here(conversations, made)


def test_validation_files_go_first_and_keep_what_both_have(tmp_path: Path) -> None:
    train = write_prompts(tmp_path / "train.jsonl", 12)
    held = write_prompts(tmp_path / "held.jsonl", 4, start=10)
    rows, index = build(tmp_path, [train], validation=[held], share=None)
    assert [row["source"] for row in rows] == ["held.jsonl"] * 4 + ["train.jsonl"] * 10
    assert {row["split"] for row in rows[:4]} == {"validation"}
    assert {row["split"] for row in rows[4:]} == {"train"}
    assert index["duplicates"] == 2


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", 3)
    with pytest.raises(SpeccError, match="no conversation is left for training"):
        build(tmp_path, [path], share=1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1), max_size=8, unique=True), st.lists(st.text(min_size=1), max_size=8), st.randoms())
def test_adding_data_moves_no_conversation(first: list[str], more: list[str], shuffle: random.Random) -> None:
    def split(texts: list[str]) -> dict[str, bool]:
        return {text: is_validation(hashlib.sha256(text.encode()).hexdigest(), 0.3) for text in texts}

    mixed = [*first, *more]
    shuffle.shuffle(mixed)
    assert split(first).items() <= split(mixed).items()


def test_the_share_is_met() -> None:
    found = sum(is_validation(hashlib.sha256(str(i).encode()).hexdigest(), 0.05) for i in range(20_000))
    assert 900 < found < 1100
    assert not is_validation("0" * 64, 0.0)
    assert is_validation("0" * 64, 1.0)


def test_appended_data_leaves_earlier_shards_byte_identical(tmp_path: Path) -> None:
    held = write_prompts(tmp_path / "held.jsonl", 3, start=500)
    path = write_prompts(tmp_path / "p.jsonl", 21)
    build(tmp_path, [path], validation=[held])
    before = {entry.path: entry.sha256 for entry in entries(tmp_path / "output")}
    build(tmp_path, [write_prompts(path, 40)], validation=[held], output="longer")
    after = {entry.path: entry.sha256 for entry in entries(tmp_path / "longer")}
    assert len(before) == 4
    assert len(after) == 7
    assert [after[f"shards/0000{k}.jsonl"] for k in range(2)] == [before[f"shards/0000{k}.jsonl"] for k in range(2)]


def test_reading_is_bounded_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for index in range(4000):
            file.write(json.dumps({"prompt": f"{index} " + "word " * 2000}) + "\n")
    made = job(tmp_path, [path], shard_rows=16)
    size = path.stat().st_size
    tracemalloc.start()
    run_here(conversations, made)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 40e6
    assert peak < 3e6


def test_a_line_that_is_too_long_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specc.datagen.formats.MAX_LINE", 50)
    file = io.BytesIO(b"a" * 50 + b"\n" + b"b" * 51 + b"\n" + b"c\n" + b"d" * 1000)
    assert list(read_lines(file)) == [(1, None), (2, None), (3, b"c\n"), (4, None)]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3), st.integers(0, 2**53 - 1))
def test_fast_canonical_json_is_canonical(texts: list[str], number: int) -> None:
    row: Any = {"id": texts[0], "row": number, "messages": [{"role": U, "content": text} for text in texts]}
    assert canonical_text(row) == canonical(row)


def test_as_a_process(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.jsonl", 20)
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines()[0] + b"\n")
    code, events, log = run_process("datagen", job(tmp_path, [path]), tmp_path)
    assert code == 0, log
    assert isinstance(events[-1], StageResult)
    assert Note(text="1 of 21 rows are exact duplicates and were left out") in events

    path.write_text("nothing\n")
    code, events, _ = run_process("datagen", job(tmp_path, [path]), tmp_path)
    assert code == 1
    assert isinstance(events[-1], Failure)
    assert events[-1].message.startswith("1 row of 1 cannot be used\n  p.jsonl:1: not JSON")
