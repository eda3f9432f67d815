"""The store: what is sealed can be found, is what it says, and cannot be changed by accident."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safetensor import one_tensor
from specc.core.contracts import Input, Manifest, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.files import FileEntry, digest_of, directory_digest, entries, sha256, tensors_digest
from specc.core.store import Store, project_root


def job(store: Store, key: str = "k" * 64, stage: str = "tokens", **changes: object) -> StageJob:
    values = {"params": {"data": {"shard_rows": 8}}, "facets": {"threads": 2},
              "inputs": {"verifier": Input(path="/elsewhere", digest="a" * 64)}, **changes}  # fmt: skip
    return StageJob(stage=stage, version=1, key=key, files={}, output="", work=str(store.work(stage, key)),
                    units=str(store.units(stage)), **values)  # pyright: ignore # fmt: skip


def put(
    store: Store, files: dict[str, bytes], key: str = "k" * 64, stage: str = "tokens", name: str = "tiny"
) -> Manifest:
    output = store.begin(stage, key)
    for path, data in files.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(data)
    return store.seal(job(store, key, stage), name, output, {"seconds": 1.5})


@pytest.fixture
def store(quick_path: Path) -> Store:
    return Store(quick_path / "store")


def test_a_sealed_artifact_is_found_under_its_key_and_its_digest(store: Store) -> None:
    manifest = put(store, {"index.json": b"{}\n", "shards/00000.safetensors": one_tensor()})
    folder = store.path(manifest.digest)
    assert store.find("tokens", "k" * 64) == manifest.digest == directory_digest(entries(folder))
    assert folder.name == f"{manifest.digest[:12]}-tokens-tiny"
    assert store.manifest(manifest.digest) == store.manifest(manifest.digest, "k" * 64) == manifest
    assert [(path, size) for path, size, _ in manifest.files] == [("index.json", 3), ("shards/00000.safetensors", 77)]
    tensors = tensors_digest(folder / "shards/00000.safetensors")
    assert manifest.tensors == digest_of([["shards/00000.safetensors", tensors]])
    assert manifest.inputs == {"verifier": "a" * 64}
    assert store.record("k" * 64) == {"seconds": 1.5, "order": 1}
    assert store.verify(manifest.digest) == []
    assert store.digests() == [manifest.digest]
    assert list((store.root / "tmp").iterdir()) == []


def test_an_artifact_is_read_only_down_to_its_files(store: Store) -> None:
    folder = store.path(put(store, {"a/b/c": b"x"}).digest)
    modes = {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]
    }
    assert modes == {".": 0o555, "a": 0o555, "a/b": 0o555, "a/b/c": 0o444}


def test_what_is_not_there_is_not_found(store: Store) -> None:
    assert store.find("tokens", "k" * 64) is None
    assert (store.digests(), store.refs(), store.record("k")) == ([], {}, {})
    assert store.last("tiny", "tokens") is None
    assert not store.root.exists(), "reading makes nothing"
    for ask in (store.path, store.manifest, store.verify, store.resolve):
        with pytest.raises(SpeccError, match="no artifact `bbbbbbbbbbbb` in the store"):
            ask("b" * 64)


def test_a_key_whose_artifact_or_manifest_is_gone_is_built_again(store: Store) -> None:
    manifest = put(store, {"a": b"x"})
    path = store.root / "manifests" / f"{manifest.digest}.json"
    path.write_text(path.read_text()[:100])
    assert store.find("tokens", "k" * 64) is None
    assert put(store, {"a": b"x"}) == manifest, "sealing again mends it"
    assert store.find("tokens", "k" * 64) == manifest.digest
    store.remove(manifest.digest)
    assert store.find("tokens", "k" * 64) is None
    assert store.digests() == []
    assert put(store, {"a": b"x"}).digest == manifest.digest


def test_equal_bytes_from_another_key_are_one_artifact_with_two_histories(store: Store) -> None:
    first = put(store, {"a": b"x"})
    second = put(store, {"a": b"x"}, key="m" * 64, stage="responses", name="other")
    assert first.digest == second.digest
    assert len(list(store.root.glob(f"{first.digest[:12]}-*"))) == 1
    assert store.manifest(first.digest).stage == "tokens"
    assert store.manifest(first.digest, "m" * 64).stage == "responses"


def test_one_key_with_two_digests_is_a_difference_and_both_are_kept(store: Store) -> None:
    first = put(store, {"a": b"x"})
    with pytest.raises(SpeccError) as caught:
        put(store, {"a": b"y"})
    second = next(digest for digest in store.digests() if digest != first.digest)
    assert caught.value.code == Exit.DIFFERENCE
    assert first.digest[:12] in caught.value.message
    assert second[:12] in caught.value.message
    assert store.find("tokens", "k" * 64) == first.digest, "the index still names the first"
    assert (store.path(second) / "a").read_bytes() == b"y"
    assert "tensors" not in (caught.value.note or "")
    assert first.digest in (store.root / "conflicts" / f"{'k' * 64}.json").read_text()


def test_a_difference_in_a_header_alone_is_said_to_be_one(store: Store) -> None:
    put(store, {"a.safetensors": one_tensor()})
    with pytest.raises(SpeccError) as caught:
        put(store, {"a.safetensors": one_tensor(metadata={"format": "pt"})})
    assert "the tensors are the same, bit by bit" in (caught.value.note or "")


def test_a_rebuild_is_compared_with_an_artifact_that_was_removed(store: Store) -> None:
    store.remove(put(store, {"a": b"x"}).digest)
    with pytest.raises(SpeccError) as caught:
        put(store, {"a": b"y"})
    assert caught.value.code == Exit.DIFFERENCE
    assert "no longer in the store" in caught.value.render()


def test_what_cannot_be_an_artifact_is_refused(store: Store) -> None:
    output = store.begin("tokens", "k" * 64)
    (output / "empty").mkdir()
    with pytest.raises(SpeccError, match="the stage `tokens` wrote nothing"):
        store.seal(job(store), "tiny", output, {})
    (output / "link").symlink_to("/etc/hostname")
    with pytest.raises(SpeccError, match="symbolic link") as caught:
        store.seal(job(store), "tiny", output, {})
    assert caught.value.code == Exit.STAGE
    (output / "link").unlink()
    (output / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(SpeccError, match="not a safetensors file"):
        store.seal(job(store), "tiny", output, {})
    assert store.digests() == []


def test_an_empty_folder_is_no_part_of_an_artifact(store: Store) -> None:
    output = store.begin("tokens", "k" * 64)
    (output / "empty/inner").mkdir(parents=True)
    (output / "a").write_bytes(b"x")
    manifest = store.seal(job(store), "tiny", output, {})
    assert [path.name for path in store.path(manifest.digest).iterdir()] == ["a"]


def test_verify_finds_every_kind_of_damage(store: Store) -> None:
    manifest = put(store, {"changed": b"one", "grown": b"one", "gone": b"one", "fine": b"one"})
    folder = store.path(manifest.digest)
    folder.chmod(0o755)
    for name in ("changed", "grown"):
        (folder / name).chmod(0o644)
    times = (folder / "changed").stat()
    (folder / "changed").write_bytes(b"two")
    os.utime(folder / "changed", ns=(times.st_atime_ns, times.st_mtime_ns))  # what a bad disk does leaves no trace
    (folder / "grown").write_bytes(b"more")
    (folder / "gone").unlink()
    (folder / "new").write_bytes(b"")
    found = store.verify(manifest.digest)
    assert [line.split(":")[0] for line in found] == ["changed", "gone", "grown", "new"]
    assert "4 bytes, 3 when it was sealed" in found[2]
    (folder / "link").symlink_to("fine")
    assert "symbolic link" in store.verify(manifest.digest)[0]


def test_a_manifest_that_was_edited_is_found(store: Store) -> None:
    manifest = put(store, {"a": b"x"})
    path = store.root / "manifests" / f"{manifest.digest}.json"
    path.write_text(path.read_text().replace('"a"', '"b"'))
    assert store.verify(manifest.digest)[0] == "the manifest lists other files than its digest stands for"


def test_ids_are_found_by_their_start_their_folder_or_their_name(store: Store) -> None:
    manifest = put(store, {"a": b"x"})
    digest = manifest.digest
    store.name_ref("tiny", digest)
    names = [digest, digest[:4], f"sha256:{digest[:8]}", digest[:10].upper(), f"{store.path(digest)}/", "tiny"]
    assert {store.resolve(name) for name in names} == {digest}
    for name, message in (("abc", "not the id of"), ("zzzz", "not the id of"), ("", "not the id of"),
                          ("0" * 12, "no artifact"), (digest + "0", "not the id of")):  # fmt: skip
        with pytest.raises(SpeccError, match=message) as caught:
            store.resolve(name)
        assert caught.value.code == Exit.INPUT


def test_an_ambiguous_id_names_what_it_could_mean(store: Store) -> None:
    # Two artifacts whose digests start alike, found by search.
    seen: dict[str, int] = {}
    for number in range(5000):
        data = str(number).encode()
        start = directory_digest([FileEntry("a", len(data), sha256(data))])[:4]
        if start in seen:
            break
        seen[start] = number
    for index, value in enumerate((seen[start], number)):
        put(store, {"a": str(value).encode()}, key=f"{index:064}")
    with pytest.raises(SpeccError, match=f"`{start}` is the start of 2 artifacts") as caught:
        store.resolve(start)
    assert (caught.value.note or "").count("tokens") == 2


def test_the_last_build_and_the_names_of_a_spec(store: Store) -> None:
    manifest = put(store, {"a": b"x"})
    store.note_last("tiny", "tokens", manifest)
    assert store.last("tiny", "tokens") == manifest
    assert store.last("other", "tokens") is None
    store.name_ref("tiny", manifest.digest)
    assert store.refs() == {"tiny": manifest.digest}


def test_names_that_are_no_file_names_stay_apart_and_inside(store: Store) -> None:
    manifest = put(store, {"a": b"x"}, name="../../etc/é name")
    assert store.path(manifest.digest).parent == store.root
    for name in ("a/b", "a-b", "a b", "..", "", "x" * 300):
        store.name_ref(name, manifest.digest)
        store.note_last(name, "tokens", manifest)
        assert store.last(name, "tokens") == manifest
    assert len(store.refs()) == 6
    assert not list(store.root.parent.glob("*.json"))


def test_a_unit_that_artifacts_share_is_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    from specc.core.store import digests

    plain = digests.sha256_file
    monkeypatch.setattr(digests, "sha256_file", lambda path: (hashed.append(path), plain(path))[1])
    unit = store.units("tokens") / "unit"
    unit.write_bytes(b"many bytes")
    manifests: list[Manifest] = []
    for index in range(3):
        reopened = Store(store.root)
        output = reopened.begin("tokens", f"{index:064}")
        (output / "shard").hardlink_to(unit)
        (output / "own").write_text(str(index))
        manifests.append(reopened.seal(job(reopened, f"{index:064}"), "tiny", output, {}))
    assert [path.name for path in hashed].count("shard") == 1
    assert len({manifest.digest for manifest in manifests}) == 3
    assert all(store.verify(manifest.digest) == [] for manifest in manifests)


def test_a_file_is_hashed_again_when_it_changed_and_only_then(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specc.core.store import digests

    hashed: list[Path] = []
    plain = digests.sha256_file
    monkeypatch.setattr(digests, "sha256_file", lambda path: (hashed.append(path), plain(path))[1])
    path = tmp_path / "prompts.jsonl"
    path.write_text("one")
    for _ in range(2):
        store.file_digest(path)
    assert len(hashed) == 2, "a file that just changed may change again within one tick of the clock"
    later = time.time_ns() + 5_000_000_000
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)
    first = store.file_digest(path)
    assert store.file_digest(path) == Store(store.root).file_digest(path) == first
    assert len(hashed) == 3
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.file_digest(path) != first, "the ctime tells, whatever the mtime says"


def test_a_torn_line_of_the_digest_cache_is_ignored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specc.core.store import digests

    path = tmp_path / "prompts.jsonl"
    path.write_text("one")
    later = time.time_ns() + 5_000_000_000
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)
    digest = store.file_digest(path)
    cache = store.root / "digests"
    whole = cache.read_bytes()
    for torn in (whole[:-30], whole[20:], b"\xff\x00" + whole, whole[:30] + whole):
        cache.write_bytes(torn)
        assert Store(store.root).file_digest(path) == digest
    cache.unlink()
    cache.mkdir()
    assert Store(store.root).file_digest(path) == digest


def test_a_lock_is_held_until_the_last_process_that_has_it_is_gone(store: Store) -> None:
    with store.lock("key", pytest.fail) as handle:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.4)"], pass_fds=(handle,))
    waited: list[float] = []
    started = time.monotonic()
    with store.lock("key", lambda: waited.append(time.monotonic())):
        assert len(waited) == 1, "said once that it must wait"
        assert time.monotonic() - started > 0.2
    child.wait()
    with store.lock("key", pytest.fail), store.lock("another", pytest.fail):
        pass


def test_the_project_is_the_nearest_folder_that_looks_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECC_STORE", raising=False)
    specs = tmp_path / "project/specs"
    specs.mkdir(parents=True)
    (tmp_path / "project/.git").mkdir()
    assert project_root(specs / "a.yaml") == tmp_path / "project"
    monkeypatch.chdir(specs)
    assert Store.locate(Path("a.yaml")).root == tmp_path / "project/.specc/store"
    assert Store.locate(Path("a.yaml"), "../shared").root == tmp_path / "project/shared"
    (specs / ".specc").mkdir()
    assert Store.locate(Path("a.yaml")).root == specs / ".specc/store"
    monkeypatch.setenv("SPECC_STORE", "here")
    assert Store.locate(Path("a.yaml"), "../shared").root == specs / "here"


def _without_privilege() -> None:
    """Let file modes bind the superuser too (CAP_DAC_OVERRIDE out of the bounding set, prctl(2))."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_store_that_cannot_be_written_is_an_error_in_words_and_can_be_read(store: Store) -> None:
    manifest = put(store, {"a": b"x"})
    for folder in ("tmp", "refs", "locks", "work"):
        (store.root / folder).mkdir(exist_ok=True)
        (store.root / folder).chmod(0o555)
    store.root.chmod(0o555)
    program = f"""
from pathlib import Path
from specc.core.errors import SpeccError
from specc.core.store import Store
store = Store(Path({str(store.root)!r}))
assert store.find("tokens", "k" * 64) == "{manifest.digest}" and store.verify("{manifest.digest}") == []
store.file_digest(Path({__file__!r}))
for attempt in (
    lambda: store.begin("tokens", "m" * 64), lambda: store.work("tokens", "m"), lambda: store.name_ref("x", "y"),
    lambda: store.note_last("x", "tokens", store.manifest("{manifest.digest}")),
    lambda: store.remove("{manifest.digest}"),
    lambda: store.lock("new", print).__enter__(),
):
    try:
        attempt()
    except SpeccError as error:
        print(int(error.code), error.message, "SPECC_STORE" in error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                          preexec_fn=_without_privilege)  # fmt: skip
    store.root.chmod(0o755)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["3 no permission to write here True"] * 6


def test_a_store_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    store = Store(tmp_path / "store")
    assert store.find("tokens", "k") is None
    assert store.digests() == []
    with pytest.raises(SpeccError, match="refused a write"):
        store.begin("tokens", "k" * 64)
