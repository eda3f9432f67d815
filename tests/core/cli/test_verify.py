"""`specc verify`: what is hashed again, what may be built again by its id, and how two artifacts differ."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from safetensor import safetensors_bytes
from specc.core.cli import main
from specc.core.contracts import Input, Manifest, StageJob
from specc.core.errors import Exit
from specc.core.store import Store
from specc.core.verify import compare

MANY = 700_000
"""Elements: more than are compared at once."""


@pytest.fixture
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SPECC_STORE", str(quick_path / "store"))
    return Store(quick_path / "store")


def put(store: Store, stage: str, inputs: dict[str, str] | None = None) -> Manifest:
    made_of = {slot: Input(path="", digest=digest) for slot, digest in (inputs or {}).items()}
    job = StageJob(stage=stage, version=1, key=stage.ljust(64, "0"), params={}, facets={}, files={}, inputs=made_of,
                   output="", work="", units="")  # fmt: skip
    output = store.begin(stage, job.key)
    (output / "a.json").write_text("{}\n")
    (output / "b.txt").write_text(stage)
    return store.seal(job, "tiny", output, {})


def test_an_artifact_that_is_whole(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    digest = put(store, "vocabulary").digest
    assert main(["verify", digest[:8]]) == Exit.OK
    out, err = capsys.readouterr()
    assert out == f"vocabulary     sha256:{digest[:12]}…  the same\n"
    assert err == "1 artifact hashed again: every bit is the same\n"


def test_a_changed_a_missing_and_a_foreign_file_are_named(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    digest = put(store, "vocabulary").digest
    folder = store.path(digest)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    (folder / "a.json").write_text("[]\n")  # as long as before
    (folder / "b.txt").unlink()
    (folder / "c").write_text("what is this")
    assert main(["verify", digest[:8], "--json"]) == Exit.DIFFERENCE
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert found["state"] == "different"
    assert [line.split(":")[0] for line in found["differences"]] == ["a.json", "b.txt", "c"]
    assert main(["verify", digest[:8]]) == Exit.DIFFERENCE
    assert "hint: `specc build --force --stage vocabulary SPEC` builds it again in its place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("evaluation", "reads files from outside the store"),
        ("vocabulary", "made of tokens 000000000000, no longer in the store"),
    ],
)
def test_what_cannot_be_built_again_by_its_id(
    store: Store, capsys: pytest.CaptureFixture[str], stage: str, says: str
) -> None:
    digest = put(store, stage, {"tokens": "0" * 64}).digest
    assert main(["verify", digest[:8], "--rebuild"]) == Exit.INPUT
    err = capsys.readouterr().err
    assert says in err
    assert "specc verify SPEC --rebuild" in err
    assert not list((store.root / "tmp").iterdir())


def tensors(values: list[int], name: str = "w", dtype: str = "BF16", metadata: dict[str, str] | None = None) -> bytes:
    body = struct.pack(f"<{len(values)}H", *values)
    header = {name: {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, len(body)]}}
    return safetensors_bytes(({"__metadata__": metadata} if metadata else {}) | header, body)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ([1, 2, 3], [1, 5, 4], "tensor `w` BF16 [3]: 2 of 3 elements differ, the first at 1"),
        ([0] * MANY, [0] * (MANY - 1) + [1], "tensor `w` BF16 [700000]: 1 of 700,000 elements differ, the first at "
                                             "699,999"),
        ([1, 2], [1, 2, 3], "tensor `w` is BF16 [2] and BF16 [3]"),
    ],
)  # fmt: skip
def test_tensors_are_compared_one_by_one(tmp_path: Path, before: list[int], after: list[int], says: str) -> None:
    for name, values in (("old", before), ("new", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(tensors(values))
    assert list(compare(tmp_path / "old", tmp_path / "new")) == [f"model.safetensors: {says}"]


def test_files_are_compared_by_name_header_and_line(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, header, text in ((old, None, "a\nb\n"), (new, {"format": "pt"}, "a\nc\n")):
        folder.mkdir()
        (folder / "m.safetensors").write_bytes(tensors([1], metadata=header))
        (folder / "report.json").write_text(text)
        (folder / folder.name).write_text("")
    assert list(compare(old, new)) == [
        "m.safetensors: the tensors are the same, and the header is another",
        "new: only in the rebuild",
        "old: only in the first",
        "report.json: other bytes from line 2 on",
    ]
