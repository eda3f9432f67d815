"""Canonical JSON, digests and tensor headers, held to their standards and to files that lie."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetensor import one_tensor, safetensors_bytes
from specc.core.errors import Exit, SpeccError
from specc.core.files import (
    atomic,
    canonical,
    digest_of,
    directory_digest,
    entries,
    flatten,
    link_or_copy,
    pretty,
    remove_tree,
    storage_error,
    tensor_headers,
    tensors_digest,
    write_atomic,
)

RFC_8785_INPUT = """{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\\u20ac$\\u000F\\u000aA'\\u0042\\u0022\\u005c\\\\\\"\\/",
  "literals": [null, true, false]
}"""
RFC_8785_OUTPUT = (
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
)


def test_canonical_json_is_that_of_rfc_8785() -> None:
    assert canonical(json.loads(RFC_8785_INPUT)).decode() == RFC_8785_OUTPUT


def test_keys_are_sorted_by_utf_16_as_in_rfc_8785() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    found = list(json.loads(canonical(dict.fromkeys(keys, 0))))
    assert found == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, "\udcff", {"\udcff": 1}, {1: 2}, object()])
def test_what_json_cannot_say_exactly_is_refused(value: object) -> None:
    with pytest.raises(SpeccError, match="canonical JSON"):
        canonical(value)


@settings(max_examples=60, deadline=None, database=None)
@given(st.recursive(st.none() | st.booleans() | st.text() | st.integers(-(2**53) + 1, 2**53 - 1),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_canonical_json_reads_back(value: object) -> None:
    assert json.loads(canonical(value)) == value


def test_pretty_json_is_sorted_and_ends_its_line() -> None:
    assert pretty({"b": "é", "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'


def _tree(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"hello\n")
    (folder / "sub/b.bin").write_bytes(b"\x00\x01\x02")
    return folder


def test_the_digest_of_a_directory(tmp_path: Path) -> None:
    # printf '[["a.txt",6,"%s"],["sub/b.bin",3,"%s"]]' $(sha256sum…) | sha256sum
    digest = "c8b044d32cf2cb8106174d7b62528b52da45da098094e3b9771caee0a80f8d8d"
    found = entries(_tree(tmp_path / "tree"))
    assert [entry.path for entry in found] == ["a.txt", "sub/b.bin"]
    assert directory_digest(found) == digest
    assert directory_digest(reversed(found)) == digest, "the order of a listing says nothing"


def test_the_digest_of_tensors_is_not_that_of_their_header(tmp_path: Path) -> None:
    # printf '[["w","F32",[2],"%s"]]' $(printf '\x00\x00\x80\x3f\x00\x00\x00\x40' | sha256sum) | sha256sum
    plain, described = tmp_path / "plain.safetensors", tmp_path / "described.safetensors"
    plain.write_bytes(one_tensor())
    described.write_bytes(one_tensor(metadata={"format": "pt"}))
    expected = "76732f7feba6b146e1d5a597c0fd3403886c2ee633bf68bbda4289957d2de436"
    assert tensors_digest(plain) == tensors_digest(described) == expected
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(one_tensor(name="v"))
    assert tensors_digest(renamed) != expected


def test_only_plain_files_are_part_of_an_artifact(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree")
    (tree / "sub/link").symlink_to("b.bin")
    with pytest.raises(SpeccError, match="symbolic link") as caught:
        entries(tree)
    assert caught.value.where == str(tree / "sub/link")
    (tree / "sub/link").unlink()
    os.mkfifo(tree / "pipe")
    with pytest.raises(SpeccError, match="only plain files"):
        entries(tree)


def _entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_a_good_header_is_read_sorted(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {"b": _entry(), "a": _entry(data_offsets=[8, 8], shape=[0, 4]),
              "c": _entry(data_offsets=[8, 14], dtype="BF16", shape=[3]), "__metadata__": {"format": "pt"}}  # fmt: skip
    path.write_bytes(safetensors_bytes(header, bytes(14)))
    found = [(tensor.name, tensor.dtype, tensor.shape, tensor.start, tensor.end) for tensor in tensor_headers(path)]
    assert found == [("a", "F32", (0, 4), 8, 8), ("b", "F32", (2,), 0, 8), ("c", "BF16", (3,), 8, 14)]


HOSTILE = {
    "empty": b"",
    "seven bytes": bytes(7),
    "a length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "a length that is one too long": b"\x03" + bytes(7) + b"{}",
    "not JSON": safetensors_bytes(b"\x80\x81"),
    "a list": safetensors_bytes(b"[]"),
    "too deep": safetensors_bytes(b"[" * 100_000),
    "a number of many digits": safetensors_bytes(b'{"w":' + b"9" * 5000 + b"}"),
    "a name that stands twice": safetensors_bytes(
        b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "an entry that is a string": safetensors_bytes({"w": "F32"}),
    "an unknown dtype": safetensors_bytes({"w": _entry(dtype="F31")}, bytes(8)),
    "a dtype that is a list": safetensors_bytes({"w": _entry(dtype=[])}, bytes(8)),
    "no shape": safetensors_bytes({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "a shape of words": safetensors_bytes({"w": _entry(shape="12")}, bytes(8)),
    "a shape of fractions": safetensors_bytes({"w": _entry(shape=[2.0])}, bytes(8)),
    "a negative shape": safetensors_bytes({"w": _entry(shape=[-1, -2])}, bytes(8)),
    "a huge shape": safetensors_bytes({"w": _entry(shape=[1 << 62, 1 << 62])}, bytes(8)),
    "many dimensions": safetensors_bytes({"w": _entry(shape=[1] * 1000 + [2])}, bytes(8)),
    "a bool for a number": safetensors_bytes({"w": _entry(shape=[True, 2])}, bytes(8)),
    "three offsets": safetensors_bytes({"w": _entry(data_offsets=[0, 4, 8])}, bytes(8)),
    "offsets backwards": safetensors_bytes({"w": _entry(data_offsets=[8, 0])}, bytes(8)),
    "offsets that are words": safetensors_bytes({"w": _entry(data_offsets=["0", "8"])}, bytes(8)),
    "bytes beyond the file": safetensors_bytes({"w": _entry(data_offsets=[4, 12])}, bytes(8)),
    "fewer bytes than the shape": safetensors_bytes({"w": _entry(shape=[3])}, bytes(8)),
    "a gap": safetensors_bytes({"w": _entry(data_offsets=[4, 12])}, bytes(12)),
    "an overlap": safetensors_bytes({"v": _entry(), "w": _entry(data_offsets=[4, 12])}, bytes(12)),
    "bytes that are no tensor's": safetensors_bytes({"w": _entry()}, bytes(9)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_header_that_lies_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(SpeccError, match="not a safetensors file") as caught:
        tensor_headers(path)
    assert caught.value.where == str(path)


@settings(max_examples=60, deadline=None, database=None)
@given(st.binary(max_size=64), st.binary(max_size=16))
def test_no_bytes_make_the_reader_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, body: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for data in (
        header + body,
        safetensors_bytes(header, body),
        safetensors_bytes({"w": header.decode("latin-1")}, body),
    ):
        path.write_bytes(data)
        try:
            tensor_headers(path)
        except SpeccError:
            continue


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, "old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_link_or_copy_gives_a_second_name_or_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("bytes")
    link_or_copy(source, tmp_path / "a/b")
    assert (tmp_path / "a/b").samefile(source)
    link_or_copy(source, tmp_path / "a/b")  # the name is taken, so a link cannot be made
    assert (tmp_path / "a/b").read_text() == "bytes"


def test_a_sealed_tree_is_removed(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree")
    (tree / "out").symlink_to(tmp_path)
    for path in (tree / "a.txt", tree / "sub/b.bin"):
        path.chmod(0o444)
    for path in (tree / "sub", tree):
        path.chmod(0o555)
    (tmp_path / "kept").write_text("behind the link")
    remove_tree(tree)
    remove_tree(tree)
    assert [item.name for item in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "refused"),
    ],
)
def test_what_the_system_refuses_is_said_in_words(tmp_path: Path, number: int, message: str) -> None:
    error = storage_error(OSError(number, os.strerror(number), str(tmp_path / "x")), tmp_path)
    assert message in error.message
    assert (error.where, error.code) == (str(tmp_path / "x"), Exit.STAGE)
    assert number == errno.EIO or "SPECC_STORE" in (error.hint or "")


def test_flatten_keeps_lists_and_empty_mappings() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}]}
    assert digest_of(flatten({})) == digest_of({})
