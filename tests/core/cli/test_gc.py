"""`specc gc`: what stays, what goes, how much that frees, and what may not be taken from a running build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from specc.core.cli import main
from specc.core.contracts import Input, Manifest, StageJob
from specc.core.errors import Exit
from specc.core.store import Store


@pytest.fixture
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (quick_path / "pyproject.toml").write_text("")
    monkeypatch.delenv("SPECC_STORE", raising=False)
    monkeypatch.chdir(quick_path)
    return Store(quick_path / ".specc/store")


def put(store: Store, stage: str, text: str, inputs: Mapping[str, Manifest] | None = None, day: int = 1) -> Manifest:
    made_of = {slot: Input(path="", digest=item.digest) for slot, item in (inputs or {}).items()}
    key = f"{stage}{text}".encode().hex().ljust(64, "0")[:64]
    job = StageJob(stage=stage, version=1, key=key, params={}, facets={}, files={}, inputs=made_of, output="",
                   work="", units="")  # fmt: skip
    output = store.begin(stage, key)
    (output / "file").write_text(text * 1000)
    return store.seal(job, "tiny", output, {"started": f"2026-01-{day:02}T00:00:00Z"})


def gc(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["gc", "--json", *options]) == Exit.OK
    return json.loads(capsys.readouterr().out)


def test_what_a_ref_needs_stays_with_all_that_it_is_made_of(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = put(store, "tokens", "a")
    draft = put(store, "draft", "b", {"tokens": tokens})
    other = put(store, "draft", "c", {"tokens": put(store, "tokens", "d", day=2)}, day=2)
    store.name_ref("tiny", draft.digest)
    assert gc(capsys)["bytes"] == 0, "the newest of each stage stays"
    found = gc(capsys, "--keep-last", "0", "--dry-run")
    assert found["bytes"] == 2000
    assert not found["removed"]
    assert len(store.digests()) == 4
    gc(capsys, "--keep-last", "0")
    assert store.digests() == sorted([tokens.digest, draft.digest])
    assert store.find("draft", other.key) is None


def test_a_name_that_is_forgotten_keeps_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tiny", "other"):
        store.name_ref(name, put(store, "draft", name).digest)
    assert main(["gc", "--forget", "nobody", "--keep-last", "0"]) == Exit.INPUT
    assert "no artifact is named `nobody`" in capsys.readouterr().err
    assert main(["gc", "--forget", "tiny", "--dry-run"]) == Exit.USAGE
    capsys.readouterr()
    assert len(gc(capsys, "--keep-last", "0", "--forget", "tiny")["artifacts"]) == 1
    assert main(["status"]) == Exit.OK
    said = capsys.readouterr().out
    assert "other" in said
    assert "tiny" not in said
    store.remove(store.refs()["other"])
    assert main(["status"]) == Exit.OK
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["other", "missing"]
    store.forget_ref("other")
    assert main(["status"]) == Exit.OK
    assert "has a name" in capsys.readouterr().err
    assert main(["status", "--only", "a=b"]) == Exit.USAGE


def test_the_newest_are_those_that_were_built_last_whatever_the_clock_said(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [put(store, "tokens", letter, day=day) for letter, day in (("a", 3), ("b", 1), ("c", 2))]
    gc(capsys, "--keep-last", "2")
    assert store.digests() == sorted([made[1].digest, made[2].digest])


def test_a_projects_locks_hold_what_their_builds_found(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    locked, loose = put(store, "tokens", "a"), put(store, "tokens", "b")
    lock = json.loads((Path(__file__).parents[3] / "specs/quickstart.lock.json").read_text())
    lock["results"] = {"cpu-avx2-t2-r1": {"tokens": locked.digest}}
    Path("specs").mkdir()
    Path("specs/my.lock.json").write_text(json.dumps(lock))
    assert [item["digest"] for item in gc(capsys, "--keep-last", "0")["artifacts"]] == [f"sha256:{loose.digest}"]


@pytest.mark.parametrize(("text", "says"), [("<<<<<<< HEAD\n", "conflict markers"), ("{", "lock")])
def test_a_broken_lock_stops_it_before_anything_goes(
    store: Store, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    put(store, "tokens", "a")
    Path("my.lock.json").write_text(text)
    assert main(["gc", "--keep-last", "0"]) == Exit.INPUT
    assert says in capsys.readouterr().err
    assert len(store.digests()) == 1


def test_a_running_build_holds_what_it_found_and_a_killed_one_does_not(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    made = put(store, "tokens", "a")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom specc.core.store import Store\n"
        "with Store(Path(sys.argv[1])).lease() as hold:\n"
        "    hold(sys.argv[2])\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    build = subprocess.Popen([sys.executable, "-c", script, str(store.root), made.digest], stdout=subprocess.PIPE)
    assert build.stdout is not None
    assert build.stdout.readline() == b"held\n"
    assert gc(capsys, "--keep-last", "0")["artifacts"] == []
    build.kill()
    build.communicate()
    assert len(gc(capsys, "--keep-last", "0")["artifacts"]) == 1
    assert not list((store.root / "leases").iterdir())


def test_a_build_that_ends_while_gc_waits_hands_over_to_its_lock(store: Store) -> None:
    made = put(store, "tokens", "a")
    lock = json.loads((Path(__file__).parents[3] / "specs/quickstart.lock.json").read_text())
    lock["results"] = {"cpu-avx2-t2-r1": {"tokens": made.digest}}
    with store.lock("gc", pytest.fail):
        command = [str(Path(sys.executable).parent / "specc"), "gc", "--keep-last", "0"]
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert waiting.stderr.readline().endswith("holds the store: waiting\n")
        Path("my.lock.json").write_text(json.dumps(lock))
    waiting.communicate()
    assert waiting.returncode == 0
    assert store.digests() == [made.digest]


def test_shards_go_with_the_last_artifact_that_has_them_and_are_counted_once(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    units = store.units("tokens")
    (units / "ab").mkdir(parents=True)
    shard, alone = units / "ab/shard.txt", units / "ab/alone.txt"
    for path in (shard, alone):
        path.write_text("x" * 500)
        path.with_name(path.name + ".sha256").write_text("seal")
    made = list[Manifest]()
    for name in ("1", "2"):
        output = store.begin("tokens", name * 64)
        os.link(shard, output / "shard.txt")
        (output / "name").write_text(name)
        job = StageJob(stage="tokens", version=1, key=name * 64, params={}, facets={}, files={}, inputs={}, output="",
                       work="", units="")  # fmt: skip
        made.append(store.seal(job, "tiny", output, {}))
    store.name_ref("tiny", made[0].digest)
    assert gc(capsys, "--keep-last", "0")["bytes"] == 1, "the shard is the other's too"
    assert shard.exists()
    (store.root / "refs/tiny").unlink()
    assert gc(capsys, "--keep-last", "0")["bytes"] == 501
    assert not shard.exists()
    assert alone.exists(), "an unfinished build would go on from it"
    assert gc(capsys, "--unfinished")["bytes"] == 500
    assert not list((units / "ab").iterdir())


def test_what_a_killed_build_would_go_on_from_stays_unless_asked(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    work = store.work("draft", "f" * 64)
    (work / "checkpoint").write_text("x" * 100)
    output = store.begin("draft", "f" * 64)
    (output / "half").write_text("y" * 10)
    with store.lock("f" * 64, lambda: None):
        assert gc(capsys, "--unfinished")["folders"] == [], "the stage runs"
    assert gc(capsys)["folders"] == [str(output)]
    assert work.exists()
    assert gc(capsys, "--unfinished")["folders"] == [str(work)]
    assert not work.exists()


def test_it_says_what_it_does_in_words(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    digest = put(store, "tokens", "a").digest
    assert main(["gc", "--keep-last", "0", "--dry-run"]) == Exit.OK
    out, err = capsys.readouterr()
    assert err == "1 kB would come free: 1 artifact, 0 left-over folders\n"
    assert out == f"     1 kB  tokens         sha256:{digest[:12]}…\n"


def test_without_a_store_it_says_so(quick_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("SPECC_STORE", str(quick_path / "none"))
    assert main(["gc"]) == Exit.INPUT
    assert "there is no store here" in capsys.readouterr().err
