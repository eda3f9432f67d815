"""Rows of data files in every format that is read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specc.core.errors import SpeccError
from specc.datagen.formats import rows_of
from specc.datagen.shapes import ShapeError

ROWS: list[dict[str, Any]] = [{"prompt": f"Why {i}?", "completion": 'So, "ü"\nand so.'} for i in range(5)]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


def written(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Return the bytes of a file of rows, as other programs write it."""
    text = io.StringIO(newline="")
    match suffix:
        case ".jsonl":
            text.write("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            json.dump(rows, text, indent=1, ensure_ascii=False)
        case ".csv" | ".tsv":
            table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
        case ".parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
            return sink.getvalue().to_pybytes()
        case _:
            sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
            new = pa.ipc.new_file if suffix == ".arrow" else pa.ipc.new_stream
            with new(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
            return sink.getvalue().to_pybytes()
    return text.getvalue().encode()


def read(folder: Path, name: str, data: bytes, columns: dict[str, str] | None = None) -> list[tuple[int, object]]:
    (folder / "file").write_bytes(data)
    found = rows_of(folder / "file", name, columns)
    return [(number, str(row) if isinstance(row, ShapeError) else row) for number, row in found]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_texts_and_their_compressions(tmp_path: Path, suffix: str, compression: str) -> None:
    data = COMPRESS[compression](written(ROWS, suffix))
    found = read(tmp_path, f"rows{suffix}{compression}", data)
    assert [row for _, row in found] == ROWS
    assert [number for number, _ in found] == ([2, 4, 6, 8, 10] if suffix[1] in "ct" else [1, 2, 3, 4, 5])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".stream"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    turns = [{"messages": [{"role": "user", "content": "a"}], "when": date(2026, 1, 1), "raw": b"x", "n": 1.5}]
    name = "rows.arrow" if suffix == ".stream" else f"rows{suffix}"
    plain = {"messages": [{"role": "user", "content": "a"}], "when": None, "raw": None, "n": 1.5}
    assert read(tmp_path, name, written(turns, suffix)) == [(1, plain)]
    assert read(tmp_path, name, written(ROWS, suffix)) == list(enumerate(ROWS, 1))
    assert read(tmp_path, name, written(ROWS, suffix), {"instruction": "prompt"})[3] == (4, {"instruction": "Why 3?"})


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfone\r\n\n two \n\xff\n"
    assert read(tmp_path, "a.txt", data) == [(1, {"prompt": "one"}), (3, {"prompt": "two"}),
                                             (4, "not UTF-8 at byte 1 of the line")]  # fmt: skip


def test_a_json_file_may_have_a_row_a_line(tmp_path: Path) -> None:
    assert read(tmp_path, "a.json", b'\n {"prompt": "a"}\n{"prompt": }\n[1]\n') == [
        (2, {"prompt": "a"}), (3, "not JSON: Expecting value at column 12"), (4, [1])]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
                             | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8), max_size=6),
       st.integers(1, 9), st.sampled_from([None, 1]))  # fmt: skip
def test_a_json_list_is_read_in_pieces_of_any_size(items: list[object], piece: int, indent: int | None) -> None:
    from unittest import mock

    from specc.datagen import formats

    data = json.dumps(items, ensure_ascii=False, indent=indent).encode("utf-8", "surrogatepass")
    with mock.patch.object(formats, "CHUNK", piece):
        found = list(formats._items(data[:1], io.BytesIO(data[1:])))  # pyright: ignore[reportPrivateUsage]
    assert found == list(enumerate(items, 1))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"a": 1} {"b": 2}]', "a comma or `]` was expected behind item 1"),
        ("a.json", b'[{"a": 1}, {"b":', "Expecting value in item 2"),
        ("a.json", b"[" * 100_000, "item 1 is nested too deeply"),
        ("a.csv", b"a,a\n1,2\n", "two columns have one name"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9, mtime=0)[:-9], "Compressed file ended before"),
        ("a.jsonl.gz", b"{}\n", "Not a gzipped file"),
        ("a.jsonl.xz", b"{}\n", "Input format not supported"),
        ("a.jsonl.zst", b"{}\n", "ZSTD"),
        ("a.parquet", b"{}\n", "Parquet"),
        ("a.arrow", b"{}\n" * 9, ""),
    ],
)
def test_a_file_that_is_not_of_its_format(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(SpeccError, match=rf"`{name}` cannot be read as ") as raised:
        read(tmp_path, name, data)
    assert message in raised.value.message
    assert raised.value.hint


def test_bad_records_of_csv_stop_no_others(tmp_path: Path) -> None:
    data = b'prompt,completion\na,b\n\nc\nd,e,f\n"x"y,z\n\xff,g\n"two\nlines",h\n,\n'
    assert read(tmp_path, "a.csv", data) == [
        (2, {"prompt": "a", "completion": "b"}), (4, {"prompt": "c"}), (5, "3 cells, and there are 2 columns"),
        (6, "not CSV: ',' expected after '\"'"), (7, "not UTF-8"), (8, {"prompt": "two\nlines", "completion": "h"}),
        (10, {}),
    ]  # fmt: skip


def test_columns_are_named(tmp_path: Path) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    data = b'{"question": "a", "answer": "b", "tools": [1]}\n{"question": "c"}\n{"q": 1, "r": 2}\n3\n'
    assert read(tmp_path, "a.jsonl", data, columns) == [
        (1, {"prompt": "a", "completion": "b"}), (2, {"prompt": "c"}),
        (3, "nothing in `question`, `answer`; its columns are `q`, `r`"), (4, 3),
    ]  # fmt: skip
    for name, table in (
        ("a.csv", b"question,x\na,b\n"),
        ("a.parquet", written([{"question": "a", "x": "b"}], ".parquet")),
    ):
        with pytest.raises(SpeccError, match="it has no column `answer`; its columns are `question`, `x`"):
            read(tmp_path, name, table, columns)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet", ".jsonl.gz"])
def test_reading_is_bounded_in_memory(tmp_path: Path, suffix: str) -> None:
    base, _, compression = suffix.partition(".gz") if ".gz" in suffix else (suffix, "", "")
    rows = [{"prompt": f"{i} " + "word " * 2000} for i in range(3000)]
    data = written(rows, base)
    (tmp_path / "file").write_bytes(gzip.compress(data, 1) if suffix.endswith(".gz") else data)
    del rows, data, compression
    tracemalloc.start()
    assert sum(1 for _ in rows_of(tmp_path / "file", f"a{suffix}")) == 3000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6
