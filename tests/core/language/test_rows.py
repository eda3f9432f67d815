"""What the first row of a data file tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specc.core.language import Document
from specc.core.language.rows import SAMPLE, SHAPES, row_error

ROW = json.dumps({"messages": [{"role": "user", "content": "Why?"}]}).encode()
ANSWERED = json.dumps({"prompt": "Why?", "completion": "So."}).encode()
SPEC = "data:\n  sources: [{file: a.jsonl}]\n  responses: {from: data}\nevaluate:\n  prompts: [{file: a.jsonl}]\n"
TRAINING, EVALUATION = ("data", "sources", 0, "file"), ("evaluate", "prompts", 0, "file")


def found(
    folder: Path,
    data: bytes,
    spec: str = "data:\n  sources: [{file: a.jsonl}]\n",
    path: tuple[str | int, ...] = TRAINING,
) -> str | None:
    (folder / "a.jsonl").write_bytes(data)
    error = row_error(Document.parse(spec, "s.yaml"), path, folder / "a.jsonl")
    return None if error is None else error.id


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ROW, None),
        (b"\xef\xbb\xbf" + ROW + b"\r\n", None),
        (b"\n \n" + ROW + b"\nnot looked at", None),
        (b'{"text": "' + b"x" * SAMPLE + b'"}\n', None),  # longer than what is read
        (b'{"messages": null, "question": "Why?"}', None),
        (b"", "E0501"),
        (b" \n\t\n", "E0501"),
        (b"[" + ROW + b"]", "E0502"),
        (b"[" + b"1," * SAMPLE, "E0502"),
        (b'{"messages":\n', "E0502"),
        (b"PAR1\x15\x04", "E0502"),
        (b"\xff\xfe{\x00", "E0502"),
        (b"[" * 5000, "E0502"),
        (b"3", "E0502"),
        (b"{}", "E0503"),
        (b'{"messages": null}', "E0503"),
    ],
)
def test_the_first_row_is_read(tmp_path: Path, data: bytes, expected: str | None) -> None:
    assert found(tmp_path, data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ROW, "E0505"),
        (ROW + b"\n" + ANSWERED, None),
        (b'{"messages": [{"role": "assistant", "content": "So."}]}', None),
        (b'{"conversations": [{"from": "gpt", "value": "So."}]}', None),
        (b'{"instruction": "Say.", "output": "So."}', None),
        (b'{"messages": [7]}\nnot JSON', "E0505"),
        ((ROW + b"\n") * (SAMPLE // len(ROW) + 1), None),  # what was not read may have answers
    ],
)
def test_answers_of_the_data_are_there(tmp_path: Path, data: bytes, expected: str | None) -> None:
    assert found(tmp_path, data, SPEC) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ROW, None),
        (b'{"prompt": "Why?"}', None),
        (b'{"prompt": [{"role": "user", "content": "Why?"}]}', "E0504"),
        (b'{"question": "Why?"}', "E0504"),
    ],
)
def test_the_evaluation_reads_fewer_shapes(tmp_path: Path, data: bytes, expected: str | None) -> None:
    assert found(tmp_path, data, SPEC, EVALUATION) == expected


def test_the_shapes_are_those_that_the_stage_reads() -> None:
    shapes = pytest.importorskip("specc.datagen.shapes")
    for name in set(SHAPES) - {"input_ids"}:
        row = {name: [{"role": "user", "content": "Why?"}] if name in ("messages", "conversations") else "Why?"}
        assert shapes.read_row(row)["messages"] == [{"role": "user", "content": "Why?"}]
    with pytest.raises(shapes.ShapeError, match="unknown shape"):
        shapes.read_row({"body": "Why?"})
    assert shapes.read_row({"input_ids": [1, 2], "labels": [-100, 2]})["loss_mask"] == [0, 1]
    assert set(shapes._SHAPES) == set(SHAPES)
