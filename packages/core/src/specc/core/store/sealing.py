"""How a stage's output becomes an artifact.

A file that says something about an artifact is written after what it speaks of is on the disk, so that a crash at
any point leaves either nothing or the truth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from specc.core.contracts import Manifest, StageJob
from specc.core.errors import Exit, SpeccError
from specc.core.files import FileEntry, digest_of, directory_digest, pretty, remove_tree, sync, walk, write_atomic
from specc.core.store.digests import DigestCache
from specc.core.store.layout import Layout, files_in
from specc.core.store.manifests import SHORT, differences, dump_manifest, file_name, read_manifest, read_record, repeats


def seal(
    job: StageJob, name: str, output: Path, record: Mapping[str, Any], *, at: Layout, digests: DigestCache
) -> Manifest:
    """Make a stage's output an artifact and return its manifest.

    An artifact of the same digest that is there already is looked at, byte for byte, and replaced if it is damaged.
    Raises `SpeccError` if the output is empty or holds anything but files and folders (exit code 3), or if the key
    gave another digest before (exit code 4; both artifacts are then in the store).
    """
    with at.writing():
        files, tensors = _settle(output, job.stage, digests)
        manifest = Manifest(
            digest=directory_digest(files),
            tensors=tensors,
            stage=job.stage,
            version=job.version,
            key=job.key,
            params=job.params,
            facets=job.facets,
            inputs={slot: item.digest for slot, item in job.inputs.items() if item.digest},
            keys={slot: item.key for slot, item in job.inputs.items() if item.key},
            files=tuple((entry.path, entry.size, entry.sha256) for entry in files),
        )
    with at.lock(manifest.digest, lambda: None), at.writing():  # two keys may give the same bytes at the same time
        _place(at, digests, manifest, name, output)
    with at.lock("seal", lambda: None), at.writing():
        before = read_manifest(at.index(job.stage, job.key))
        write_atomic(at.record(job.key), pretty({**record, "order": _count(at)}))
        if before is not None and before.digest != manifest.digest:
            raise _conflict(at, before, manifest)
        write_atomic(at.index(job.stage, job.key), dump_manifest(manifest))
    return manifest


def _settle(output: Path, stage: str, digests: DigestCache) -> tuple[list[FileEntry], str | None]:
    """Make an output read-only and durable; return its files and the digest of all its tensors."""
    paths = list(walk(output))
    if not paths:
        raise SpeccError(f"the stage `{stage}` wrote nothing", code=Exit.STAGE)
    files: list[FileEntry] = []
    tensors: list[list[str]] = []
    for path in paths:
        inside = path.relative_to(output).as_posix()
        path.chmod(0o444)
        sync(path)
        files.append(FileEntry(inside, path.stat().st_size, digests.sealed_sha256(path)))
        if path.suffix == ".safetensors":
            tensors.append([inside, digests.sealed_tensors(path)])
    for parent, _, _ in os.walk(output, topdown=False):
        folder = Path(parent)
        if folder != output:
            if not any(folder.iterdir()):
                folder.rmdir()  # a digest knows files only
                continue
            folder.chmod(0o555)
        sync(folder)
    return sorted(files, key=lambda entry: entry.path), digest_of(sorted(tensors)) if tensors else None


def _place(at: Layout, digests: DigestCache, manifest: Manifest, name: str, output: Path) -> None:
    """Give a settled output its name, or leave what is there if it is the same."""
    kept = read_manifest(at.manifest(manifest.digest))
    if kept is None or kept.files != manifest.files:  # the manifest goes first: no folder is ever without one
        write_atomic(at.manifest(manifest.digest), dump_manifest(manifest))
    target = at.folder(manifest.digest)
    if target is None:
        target = at.root / f"{manifest.digest[:SHORT]}-{manifest.stage}-{file_name(name)}"
        output.rename(target)
    elif any(differences(target, manifest, digests.anew)):
        damaged = at.aside(target)
        output.rename(target)
        remove_tree(damaged)
    else:
        remove_tree(output)
    with suppress(PermissionError):  # another user's, who has done it
        target.chmod(0o555)  # not before: a folder that is moved must be writable, for its `..`
    sync(target)
    sync(at.root)


def _count(at: Layout) -> int:
    """Return one more than the last time: a clock may jump, and which of two artifacts is newer must not."""
    path = at.root / "order"
    try:
        number = int(path.read_bytes())
    except (OSError, ValueError):
        number = max((int(read_record(record).get("order", 0)) for record in files_in(at.root / "records")), default=0)
    write_atomic(path, f"{number + 1}\n")
    return number + 1


def _conflict(at: Layout, before: Manifest, after: Manifest) -> SpeccError:
    path = at.root / "conflicts" / f"{after.key}.json"
    try:
        known = {digest for digest in json.loads(path.read_bytes()) if isinstance(digest, str)}
    except (OSError, ValueError, TypeError, RecursionError):
        known = set[str]()
    write_atomic(path, pretty(sorted(known | {before.digest, after.digest})))
    places = [str(at.folder(item.digest) or "no longer in the store") for item in (before, after)]
    alike = "\n  the tensors are the same, bit by bit" if before.tensors == after.tensors is not None else ""
    hint = (
        "nothing that should decide its bits differs: compare the two"
        if repeats(after.stage, after.params)
        else "answers of an endpoint do not repeat"
    )
    return SpeccError(
        f"the stage `{after.stage}` gave sha256:{after.digest[:SHORT]}…, and sha256:{before.digest[:SHORT]}…"
        " before from the same key",
        note=f"before: {places[0]}\n  now:    {places[1]}{alike}",
        hint=f"{hint}; to go on with the new one, remove {at.index(after.stage, after.key)}",
        code=Exit.DIFFERENCE,
    )
