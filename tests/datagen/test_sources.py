"""Sources outside: a hub's data sets and addresses, spoken to by the real clients over a server on this machine."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub import Hub
from specc.core.contracts import Failure, StageJob
from specc.core.language import Document
from specc.core.plan import ROWS
from specc.core.resolve.data import pin_data
from specc.datagen import sources as module
from specc.datagen.rows import read_rows, read_shards
from stages import make_job, run_here, run_process

CARD = b"""---
license: mit
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: [main/test-*]}
- config_name: other
  data_dir: other
---
# A data set
"""


def rows(*words: str) -> list[dict[str, str]]:
    return [{"question": f"{word}?", "answer": f"{word}."} for word in words]


def parquet(*words: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows(*words)), sink)
    return sink.getvalue().to_pybytes()


def lines(*words: str) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(*words)).encode()


LAYOUTS: dict[str, tuple[dict[str, bytes], list[dict[str, str]]]] = {
    "org/card": (
        {"README.md": CARD, "main/train-00000-of-00002.parquet": parquet("a", "b"), "other/test.jsonl": lines("z"),
         "main/train-00001-of-00002.parquet": parquet("c"), "main/test-00000-of-00001.parquet": parquet("d"),
         "other/train.parquet": parquet("e"), ".gitattributes": b"*.parquet filter=lfs\n"},
        [{"config": "main", "split": "train"}, {"config": "main", "split": "test"}, {"config": "other"}],
    ),
    "org/shards": (
        {"data/train_sft-00000-of-00001.parquet": parquet("a"), "data/test_sft-00000-of-00001.parquet": parquet("b"),
         "README.md": b"# No head\n"},
        [{"split": "train_sft"}, {"split": "test_sft"}],
    ),
    "org/folders": (
        {"train/b.jsonl": lines("b"), "train/a.jsonl": lines("a"), "dev/c.jsonl": lines("c"),
         "dataset_infos.json": b"{}"},
        [{}, {"split": "train"}, {"split": "validation"}],
    ),
    "org/names": (
        {"my-train.csv": b"question,answer\na?,a.\n", "my_test-1.csv": b"question,answer\nb?,b.\n",
         "notes.json": b"[]"},
        [{"split": "train"}, {"split": "test"}],
    ),
    "org/one": ({"rows.json": json.dumps(rows("a", "b")).encode(), "README.md": b"---\nlicense: mit\n---\n"}, [{}]),
    "org/packed": (
        {"README.md": b"---\nconfigs:\n- config_name: default\n  data_files: '*.jsonl.gz'\n---\n",
         "x.jsonl.gz": gzip.compress(lines("x"), mtime=0), "a.jsonl.gz": gzip.compress(lines("a", "b"), mtime=0)},
        [{}],
    ),
}  # fmt: skip
"""Data sets as people lay them out, and what is asked of each."""

ORACLE = """
import json, sys
from datasets import load_dataset
found = []
for repo, asked in json.load(sys.stdin):
    split = asked.get("split", "train")
    found.append(list(load_dataset(repo, asked.get("config"), split=split, revision="main", streaming=True)))
print(json.dumps(found))
"""


def locked(items: list[dict[str, Any]], folder: Path, known: list[Any] | None = None) -> list[dict[str, Any]]:
    """Return sources as a lock has them."""
    tree: dict[str, Any] = {"data": {"sources": [{"rows": None, **item} for item in items],
                                     "validation": {"share": 0.0, "sources": []}}}  # fmt: skip
    pin_data(tree, folder, lambda path: "", known if known is not None else [], Document.parse("data: {}\n", "s.yaml"))
    return tree["data"]["sources"]


def job_of(items: list[dict[str, Any]], folder: Path, **data: Any) -> StageJob:
    """Return the job of the stage for locked sources, as the plan makes it."""
    values = {"data": {"sources": items, "validation": {"share": 0.0, "sources": []}, "system_prompt": None,
                       "shard_rows": 64, **data}, "verifier": {"config": {}}}  # fmt: skip
    row = ROWS["conversations"](values)
    assert row is not None
    job = make_job("conversations", folder, row.params)
    job.context.update(row.context)  # pyright: ignore[reportAttributeAccessIssue] - a dict here
    return job


def fetched(job: StageJob, hub: Hub, folder: Path) -> list[dict[str, Any]]:
    """Run the stage in a process of its own, in which the real clients find the hub; return its rows."""
    code, events, log = run_process("datagen", job, folder, HF_ENDPOINT=hub.endpoint, HOME=str(folder / "home"),
                                    NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="0")  # fmt: skip
    assert code == 0, (events[-1], log)
    return said(job)


def said(job: StageJob) -> list[dict[str, Any]]:
    output = Path(job.output)
    return [dict(row) for shard in read_shards(output) for row in read_rows(output / shard.file)]


def asked(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"].strip("?") for row in rows]


def test_splits_and_rows_are_those_of_the_library_datasets(hub: Hub, tmp_path: Path) -> None:
    wanted = [(repo, item) for repo, (_, items) in LAYOUTS.items() for item in items]
    for repo, (files, _) in LAYOUTS.items():
        hub.push(repo, files)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    run = subprocess.run([sys.executable, "-c", ORACLE], input=json.dumps(wanted), capture_output=True, text=True,
                         check=False, env=environment)  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected: list[list[dict[str, str]]] = json.loads(run.stdout.splitlines()[-1])
    for number, ((repo, item), others) in enumerate(zip(wanted, expected, strict=True)):
        (folder := tmp_path / str(number)).mkdir()
        (source,) = locked([{"dataset": repo, **item}], folder)
        source["columns"] = {"prompt": "question", "completion": "answer"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_from_hub", lambda stage, source, file: _copied(hub, stage.work, source, file))
            job = job_of([source], folder)
            run_here(_stage, job)
        pairs = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in said(job)]
        assert pairs == [(row["question"], row["answer"]) for row in others], (repo, item)
        assert others


def _copied(hub: Hub, work: Path, source: Any, file: str) -> Path:
    """Take a file from the hub's own memory: the client is not what this test is of."""
    (work / "file").write_bytes(hub.commits[source.dataset][source.commit][file])
    return work / "file"


def _stage(stage: Any) -> None:
    from specc.datagen.conversations import conversations

    conversations(stage)


def test_a_branch_that_moves_moves_nothing_that_is_locked(hub: Hub, tmp_path: Path) -> None:
    first = hub.push("org/name", {"data/train.parquet": parquet("a", "b")})
    (source,) = locked([{"dataset": "org/name"}], tmp_path)
    second = hub.push("org/name", {"data/train.parquet": parquet("x")})
    assert source["commit"] == first != second
    hub.asked.clear()
    assert locked([{"dataset": "org/name", "rows": 9}], tmp_path, [source])[0]["commit"] == first
    assert hub.asked == []  # the lock has it
    assert locked([{"dataset": "org/name"}], tmp_path)[0]["commit"] == second
    hub.asked.clear()
    hub.cut, hub.broken = 1, 1  # the client takes both
    found = fetched(job_of([source], tmp_path), hub, tmp_path)
    assert asked(found) == ["a", "b"]
    assert {row["source"] for row in found} == {"org/name/data/train.parquet"}
    assert hub.cut == hub.broken == 0
    assert [request for request in hub.asked if "/datasets/" in request and first not in request] == []
    assert not list((tmp_path / "work").rglob("*.parquet"))


def test_of_a_data_set_no_more_is_fetched_than_is_read(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/name", {f"data/train-0000{i}-of-00009.parquet": parquet(f"{i}a", f"{i}b") for i in range(9)})
    (source,) = locked([{"dataset": "org/name", "rows": 3}], tmp_path)
    assert len(source["files"]) == 9
    assert asked(fetched(job_of([source], tmp_path), hub, tmp_path)) == ["0a", "0b", "1a"]
    assert {request.rpartition("/")[2] for request in hub.asked if "GET /datasets" in request} == {
        "train-00000-of-00009.parquet", "train-00001-of-00009.parquet"}  # fmt: skip


def test_bytes_that_are_not_the_locks_are_refused(hub: Hub, tmp_path: Path) -> None:
    commit = hub.push("org/name", {"train.jsonl": lines("a")})
    (source,) = locked([{"dataset": "org/name"}], tmp_path)
    hub.commits["org/name"][commit] = {"train.jsonl": lines("b")}
    code, events, _ = run_process("datagen", job_of([source], tmp_path), tmp_path, HF_ENDPOINT=hub.endpoint,
                                  HOME=str(tmp_path), NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="0")  # fmt: skip
    assert code == 3
    assert isinstance(events[-1], Failure)
    assert events[-1].message == "`org/name/train.jsonl` is not the file that the lock names"
    assert events[-1].hint == "`specc lock --upgrade data SPEC` pins it as it is now"


def test_an_address_is_pinned_and_a_broken_download_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT", 0.0)
    hub.commits["plain"] = {"": {"rows.jsonl.gz": gzip.compress(lines("a", "b", "c"), mtime=0)}}
    url = f"{hub.endpoint}/plain/rows.jsonl.gz"
    columns = {"prompt": "question", "completion": "answer"}
    (source,) = locked([{"url": url, "columns": columns}], tmp_path)
    hub.asked.clear()
    hub.cut, hub.broken = 2, 1
    job = job_of([source], tmp_path)
    run_here(_stage, job)
    assert asked(said(job)) == ["a", "b", "c"]
    assert {row["source"] for row in said(job)} == {url}
    assert len(hub.asked) == 4
    assert not list((tmp_path / "work").rglob("download"))

    hub.commits["plain"][""] = {"rows.jsonl.gz": gzip.compress(lines("x"), mtime=0)}
    with pytest.raises(Exception, match="is not the file that the lock names"):
        run_here(_stage, job_of([source], tmp_path))
    hub.broken = 99
    with pytest.raises(Exception, match=r"cannot be fetched: HTTP Error 503"):
        run_here(_stage, job_of([source], tmp_path))


def test_a_mix_has_files_of_one_name_open_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/lower", {"train.jsonl": lines(*"abcdefgh")})
    hub.push("org/upper", {"train.jsonl": lines(*"ABCDEFGH")})
    hub.commits["plain"] = {"": {"1.jsonl": lines(*"123"), "2.jsonl": lines(*"789")}}
    sources = locked([{"dataset": "org/lower", "weight": 3}, {"dataset": "org/upper", "weight": 1}], tmp_path)
    assert "".join(asked(fetched(job_of(sources, tmp_path), hub, tmp_path))) == "abAcdeBfghC"
    urls = [{"url": f"{hub.endpoint}/plain/{name}.jsonl", "weight": 1} for name in (1, 2)]
    job = job_of(locked(urls, tmp_path), tmp_path)
    run_here(_stage, job)
    assert "".join(asked(said(job))) == "172839"


def test_what_the_params_hold(hub: Hub, tmp_path: Path) -> None:
    commit = hub.push("org/name", {"train.jsonl": lines("a")})
    (source,) = locked([{"dataset": "org/name", "revision": "main"}], tmp_path)
    job = job_of([source], tmp_path, bad_rows=5)
    (item,) = job.params["data"]["sources"]
    assert set(item) == {"dataset", "files", "rows"}  # neither branch nor commit: the bytes are named
    assert job.context["hub"]["commits"] == [commit]
    assert job.params["data"]["bad_rows"] == 5
    (source,) = locked([{"dataset": "org/name", "path": "train.jsonl"}], tmp_path)
    (item,) = (job := job_of([source], tmp_path)).params["data"]["sources"]
    assert set(item) == {"dataset", "path", "sha256", "rows"}
    assert asked(fetched(job, hub, tmp_path)) == ["a"]
