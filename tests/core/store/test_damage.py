"""Damage: what somebody or a bad disk did to a store is found, said, and mended by the next build."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from projects import BUILT, Project, leftovers, make_project
from small import write_prompts
from specc.core.errors import Exit, SpeccError
from specc.core.files import entries
from specc.core.store import Store

FUTURE, PAST = 4_000_000_000, -1_000_000_000
"""2096 and 1938."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that was built, to be copied."""
    project = make_project(tmp_path_factory.mktemp("whole"))
    project.build()
    return project


@pytest.fixture
def project(whole: Project, quick_path: Path) -> Project:
    """A copy of it, hard links included."""
    os.system(f"cp -a '{whole.folder}' '{quick_path}/project'")  # noqa: S605 - both are ours
    return Project(quick_path / "project", quick_path / "project/.specc/store")


@pytest.fixture
def digests(whole: Project) -> dict[str, str]:
    (results,) = json.loads((whole.folder / "tiny.lock.json").read_text())["results"].values()
    return results


def sound(project: Project, digests: dict[str, str]) -> None:
    """Assert that all is built and as it was sealed."""
    store = Store(project.store)
    assert project.why() == {}
    for digest in digests.values():
        assert store.verify(digest) == []
        assert store.path(digest).stat().st_mode & 0o777 == 0o555
    assert leftovers(project.store) == []


def overwrite(path: Path) -> None:
    """Change a byte in the middle, in place."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def into_a_link(path: Path) -> None:
    elsewhere = path.parents[5] / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


SHARD = "shards/00001.safetensors"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (Path.unlink, f"{SHARD}: missing"),
        (shorten, f"{SHARD}: 2686 bytes, 2687 when it was sealed"),
        (lambda path: shutil.rmtree(path.parent), "shards/00000.safetensors: missing"),
        (into_a_link, f"{SHARD}: not a plain file"),
    ],
)
def test_a_half_deleted_artifact_is_said_to_be_one_and_built_again_in_its_place(
    project: Project, digests: dict[str, str], harm: Callable[[Path], None], says: str
) -> None:
    folder = project.artifact("tokens")
    harm(folder / SHARD)
    assert project.why() == {"tokens": f"its artifact is damaged: {says}",
                             "vocabulary": "its input `tokens` is built; a hit if that comes out the same"}  # fmt: skip
    assert f"its artifact is damaged: {says}" in project.run("status", "tiny.yaml")[0]
    assert folder.name[:12] in project.run("show", folder.name[:12])[0]
    out, _ = project.run("verify", folder.name[:12], expect=Exit.DIFFERENCE)
    assert "different" in out
    _, err = project.run("build", "--stage", "vocabulary", "tiny.yaml")
    assert "tokens: started" in err
    assert "vocabulary: started" not in err, "equal bytes cut the rebuild short"
    assert project.artifact("tokens") == folder
    folder.chmod(0o555)
    sound(project, digests)


def test_a_damaged_artifact_is_seen_by_verify_of_its_spec(project: Project) -> None:
    store, folder = Store(project.store), project.artifact("tokens")
    seal_the_rest(project)
    assert "every bit is the same" in project.run("verify", "tiny.yaml")[1]
    (folder / SHARD).unlink()
    out, err = project.run("verify", "tiny.yaml", expect=Exit.DIFFERENCE)
    assert f"  {SHARD}: missing" in out
    assert "1 of 7 artifacts hashed again came out different" in err
    assert "hint: `specc build --force --stage tokens SPEC` builds it again in its place" in err
    assert len(store.digests()) == 7


def seal_the_rest(project: Project) -> None:
    """Put artifacts of the stages that need engines into the store, under the keys that the plan gives them."""
    from specc.core.contracts import Input, StageJob

    store = Store(project.store)
    while todo := [
        item
        for item in json.loads(project.run("plan", "--json", "tiny.yaml")[0])["stages"]
        if item["action"] != "hit" and item["key"]
    ]:
        stage, key = todo[0]["stage"], todo[0]["key"]
        output = store.begin(stage, key)
        (output / "file").write_text(stage)
        inputs = {"vocabulary": Input(path="", digest=store.resolve(project.artifact("vocabulary").name))}
        job = StageJob(stage=stage, version=1, key=key, params={}, facets={}, inputs=inputs, files={}, output="",
                       work="", units="")  # fmt: skip
        store.seal(job, "tiny", output, {})


def test_other_bytes_in_an_input_stop_a_build_before_its_stage_and_force_mends_it(
    project: Project, digests: dict[str, str]
) -> None:
    overwrite(project.artifact("tokens") / SHARD)
    shutil.rmtree(project.artifact("vocabulary"))
    assert project.why() == {"vocabulary": "its artifact is no longer in the store"}, "a plan hashes nothing"
    _, err = project.run("build", "--stage", "vocabulary", "tiny.yaml", expect=Exit.DIFFERENCE)
    assert f"the artifact `tokens` (sha256:{digests['tokens'][:12]}…) is damaged: {SHARD}: other bytes than" in err
    assert "\nhint: `specc build --force --stage tokens SPEC` builds it again in its place" in err
    assert "vocabulary: started" not in err
    assert project.build("tokens", "--force")["tokens"] == digests["tokens"]
    assert project.build() == digests
    sound(project, digests)


def test_other_bytes_with_the_old_times_are_found_by_verify_and_then_by_builds(
    project: Project, digests: dict[str, str]
) -> None:
    """What a bad disk does leaves no trace in a file's times."""
    shard = project.artifact("tokens") / SHARD
    shutil.rmtree(project.artifact("vocabulary"))
    Store(project.store).require(digests["tokens"], "tokens")  # so that its files are known
    before = shard.stat()
    overwrite(shard)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    project.run("verify", digests["tokens"], expect=Exit.DIFFERENCE)
    _, err = project.run("build", "--stage", "vocabulary", "tiny.yaml", expect=Exit.DIFFERENCE)
    assert f"is damaged: {SHARD}: other bytes" in err
    assert project.build("tokens", "--force")["tokens"] == digests["tokens"]
    assert project.build() == digests
    sound(project, digests)


def test_the_input_of_a_rebuild_by_id_is_looked_at_too(project: Project, digests: dict[str, str]) -> None:
    overwrite(project.artifact("tokens") / SHARD)
    _, err = project.run("verify", "--rebuild", digests["vocabulary"], expect=Exit.DIFFERENCE)
    assert "the artifact `tokens`" in err
    assert "is damaged" in err


def test_a_shard_that_a_damaged_artifact_shares_is_not_taken_for_its_rebuild(
    project: Project, digests: dict[str, str]
) -> None:
    """The shard is one file with two names: harm to the artifact is harm to the unit."""
    folder = project.artifact("tokens")
    units = {path.stat().st_ino for path in (project.store / "units").rglob("*.safetensors")}
    assert (folder / SHARD).stat().st_ino in units
    overwrite(folder / SHARD)
    (folder / "index.json").unlink()
    assert project.build() == digests
    sound(project, digests)
    for path in (project.store / "units").rglob("*.sha256"):
        path.write_bytes(b"\xff garbage")
    shutil.rmtree(project.artifact("tokens"))
    assert project.build() == digests
    sound(project, digests)


def test_what_was_sealed_here_is_not_hashed_again_and_a_copy_of_a_store_once(
    whole: Project, project: Project, digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specc.core.store import digests as cache

    hashed: list[Path] = []
    plain = cache.sha256_file
    monkeypatch.setattr(cache, "sha256_file", lambda path: (hashed.append(path), plain(path))[1])
    for store, count in ((whole.store, 0), (project.store, 6), (project.store, 0)):
        hashed.clear()
        Store(store).require(digests["tokens"], "tokens")
        assert len(hashed) == count


def test_thousands_of_files_are_looked_at_in_no_time(quick_path: Path) -> None:
    from specc.core.contracts import StageJob

    store = Store(quick_path)
    output = store.begin("tokens", "k" * 64)
    for index in range(4000):
        (output / f"{index}").write_bytes(b"x")
    job = StageJob(stage="tokens", version=1, key="k" * 64, params={}, facets={}, inputs={}, files={}, output="",
                   work="", units="")  # fmt: skip
    digest = store.seal(job, "tiny", output, {}).digest
    started = time.process_time()
    assert store.find("tokens", "k" * 64) == digest
    assert time.process_time() - started < 0.5


GARBAGE = [b"", b"{", b"\x00\xff\xfe", b"[]", b'"x"', b"null", b"[" * 100_000, b'{"digest": 5}', b"9" * 5000]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_in_any_of_the_stores_files_is_harmless(
    project: Project, digests: dict[str, str], garbage: bytes
) -> None:
    written = [path for name in ("manifests", "index", "records", "last", "conflicts") for path in
               (project.store / name).rglob("*.json")]  # fmt: skip
    assert len(written) == 4 * len(BUILT)
    for path in [*written, project.store / "order", project.store / "digests"]:
        path.write_bytes(garbage)
    for name in ("leases/1-x", "leases/garbage", "locks/left.lock", "tmp/file", "tmp/stale/half", "work/x-y/z"):
        (project.store / name).parent.mkdir(parents=True, exist_ok=True)
        (project.store / name).write_bytes(garbage)
    assert set(project.why()) == {*BUILT}
    for command in (["status", "tiny.yaml"], ["gc", "--dry-run"]):
        project.run(*command)
    assert project.build() == digests
    project.run("show", "tiny.yaml")
    project.run("gc")
    (project.store / "tmp/file").unlink()
    sound(project, digests)
    assert json.loads((project.store / "order").read_text()) >= len(BUILT)


def test_a_manifest_that_was_cut_short_is_said_and_mended(project: Project, digests: dict[str, str]) -> None:
    path = project.store / "manifests" / f"{digests['tokens']}.json"
    os.truncate(path, 100)
    assert project.why()["tokens"] == "its artifact is damaged: its manifest cannot be read"
    assert project.build() == digests
    sound(project, digests)


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "a/../../b", "a//b", "./a", "", ".."])
def test_a_manifest_whose_files_are_elsewhere_is_none(project: Project, digests: dict[str, str], name: str) -> None:
    for path in (project.store / "manifests" / f"{digests['tokens']}.json",
                 *(project.store / "index/tokens").iterdir()):  # fmt: skip
        raw = json.loads(path.read_text())
        raw["files"][0][0] = name
        path.write_text(json.dumps(raw))
    store = Store(project.store)
    assert digests["tokens"] not in store.digests()
    with pytest.raises(SpeccError, match="no artifact"):
        store.manifest(digests["tokens"])
    project.run("gc", "--dry-run")
    assert project.build() == digests
    sound(project, digests)


def test_a_link_or_a_foreign_file_in_an_artifact_is_found(project: Project, digests: dict[str, str]) -> None:
    """A stage may read all that is in a folder, so what nobody sealed stops it as well."""
    folder = project.artifact("tokens")
    (folder / "extra.safetensors").write_bytes(b"")
    with pytest.raises(SpeccError, match=r"is damaged: extra\.safetensors: not part of the artifact"):
        Store(project.store).require(digests["tokens"], "tokens")
    (folder / "extra.safetensors").unlink()
    (folder / "up").symlink_to("..")
    out, _ = project.run("verify", digests["tokens"], expect=Exit.DIFFERENCE)
    assert "up: a symbolic link cannot be part of an artifact" in out
    shutil.rmtree(project.artifact("vocabulary"))
    project.run("build", "--stage", "vocabulary", "tiny.yaml", expect=Exit.DIFFERENCE)
    project.build("tokens", "--force")
    assert project.build() == digests
    sound(project, digests)


def test_an_artifact_that_was_moved_and_linked_is_removed_as_a_link(project: Project, digests: dict[str, str]) -> None:
    folder, elsewhere = project.artifact("tokens"), project.folder / "elsewhere"
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)
    assert project.build() == digests
    (elsewhere / SHARD).unlink()
    assert "tokens" in project.why()
    assert project.build() == digests
    assert not folder.is_symlink()
    assert len(entries(elsewhere)) == 5, "what the link led to is left alone"
    sound(project, digests)


def test_nothing_depends_on_a_files_times_or_a_records_date(project: Project, digests: dict[str, str]) -> None:
    for moment in (FUTURE, 0, PAST):
        for path in project.store.rglob("*"):
            os.utime(path, (moment, moment))
        for path in (project.store / "records").iterdir():
            path.write_text(json.dumps({**json.loads(path.read_text()), "started": "2999-01-01T00:00:00Z"}))
        assert project.build() == digests
        sound(project, digests)
        (project.artifact("tokens") / SHARD).unlink()
        shutil.rmtree(project.artifact("vocabulary"))
        assert project.build() == digests
        sound(project, digests)


def test_the_newest_stay_when_the_count_of_builds_was_lost(project: Project, digests: dict[str, str]) -> None:
    for record in (project.store / "records").iterdir():
        record.write_text(json.dumps({"seconds": "long", "order": "last", "started": 5}))
    os.truncate(project.store / "order", 0)
    project.run("plan", "tiny.yaml")
    project.run("show", "tiny.yaml")
    write_prompts(project.folder / "prompts.jsonl", 60, answers=True)
    newer = project.build()
    (project.folder / "tiny.lock.json").unlink()
    (project.store / "order").write_text("garbage")
    project.run("gc", "--keep-last", "1")
    kept = Store(project.store).digests()
    assert newer["tokens"] in kept
    assert digests["tokens"] not in kept


def test_gc_removes_what_is_damaged_and_not_needed_and_keeps_what_will_be_mended(
    project: Project, digests: dict[str, str]
) -> None:
    (project.artifact("tokens") / SHARD).unlink()
    (project.store / "manifests" / f"{digests['vocabulary']}.json").unlink()
    project.run("gc", "--keep-last", "0")
    assert list(project.store.glob("*-vocabulary-*")), "the lock needs it, and a build mends it"
    assert list(project.store.glob("*-tokens-*"))
    (project.folder / "tiny.lock.json").unlink()
    project.run("gc", "--keep-last", "0")
    assert list(project.store.glob("*-*-tiny")) == []
    assert project.build() == digests
    sound(project, digests)


def test_a_ref_that_cannot_be_read_stops_gc_before_anything_goes(project: Project) -> None:
    (project.store / "refs").mkdir()
    (project.store / "refs/tiny").write_bytes(b"\xff\xfe")
    _, err = project.run("gc", "--keep-last", "0", expect=Exit.INPUT)
    assert "the ref `tiny` cannot be read, so what it needs is not known" in err
    assert len(Store(project.store).digests()) == len(BUILT)
    project.run("verify", "0123456789", expect=Exit.INPUT)
