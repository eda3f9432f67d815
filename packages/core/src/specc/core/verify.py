"""Whether an artifact is still what was sealed, and whether its recipe makes it again, bit by bit."""

from __future__ import annotations

import operator
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from specc.core.contracts import Input, Manifest, StageJob
from specc.core.errors import SpeccError
from specc.core.execute import Reporter, build
from specc.core.execute.executor import run_stage
from specc.core.files import DTYPE_BITS, TensorHeader, sha256_file, tensor_headers, tensors_start, walk
from specc.core.plan import PACKAGES, Decision, Plan, decide_stage
from specc.core.store import Store
from specc.core.store.manifests import repeats

CHUNK: Final = 1 << 20
"""Bytes of a tensor that are compared at once."""
UNSIGNED: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {8: "B", 16: "H", 32: "I", 64: "Q"}
OUTSIDE: Final = ("verifier", "conversations", "prompts", "evaluation", "benchmark")
"""Stages that read files from outside the store, or fetch them, which a manifest knows by their hashes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of one artifact.

    `same`: hashed or built again, it is the one that was sealed. `different`: `differences` say how. `skipped`:
    it is made of one that came out different, so that building it again would say nothing. `taken`: it holds answers of
    an endpoint, which nobody can ask for a second time; it is what was sealed, and the rest was built from it.
    """

    stage: str
    digest: str
    state: Literal["same", "different", "skipped", "taken"]
    rebuilt: str | None = None
    differences: tuple[str, ...] = ()


def rehash(store: Store, digests: Mapping[str, str]) -> Iterator[Finding]:
    """Hash every artifact of `{stage: digest}` again, with no cache."""
    for stage, digest in digests.items():
        found = tuple(store.verify(digest))
        yield Finding(stage=stage, digest=digest, state="different" if found else "same", differences=found)


def rebuild(
    plan: Plan,
    digests: Mapping[str, str],
    store: Store,
    fresh: Store,
    *,
    values: Mapping[str, Any],
    files: Mapping[str, Path],
    reporter: Reporter,
) -> Iterator[Finding]:
    """Build a plan in the empty store `fresh`, and compare each stage with `{stage: digest}`.

    Artifacts that are no longer in `store` are compared by their digest alone. One that its key does not decide is
    taken from `store` as it is; raises `SpeccError` if it is not there, or not what was sealed.
    """
    wrong, known = set[str](), dict[str, Decision]()
    for stage in plan.stages:
        if stage.row.streamed:  # what it makes is in what its readers make
            continue
        digest = digests[stage.name]
        if wrong.intersection(stage.row.inputs.values()):
            wrong.add(stage.name)
            yield Finding(stage=stage.name, digest=digest, state="skipped")
            continue
        if not repeats(stage.name, stage.row.params):
            store.require(digest, stage.name)
            _take(store, fresh, digest, decide_stage(plan, stage, known, fresh), known)
            known[stage.name] = decide_stage(plan, stage, known, fresh)
            yield Finding(stage=stage.name, digest=digest, state="taken")
            continue
        with fresh.lease() as hold:
            done = build(plan, fresh, values=values, files=files, reporter=reporter, hold=hold, until=stage.name,
                         log=False)  # fmt: skip
        known |= done
        found = _compared(stage.name, digest, done[stage.name].digest or "", store, fresh)
        if found.state == "different":
            wrong.add(stage.name)
        yield found


def _take(store: Store, fresh: Store, digest: str, decision: Decision, known: Mapping[str, Decision]) -> None:
    """Put an artifact of `store` into `fresh`, under the key that it has there."""
    stage, key = decision.stage, decision.key
    if key is None:  # its inputs are built
        raise AssertionError(stage.name)
    output = fresh.begin(stage.name, key)
    shutil.copytree(store.path(digest), output, dirs_exist_ok=True)
    for path in (output, *output.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    inputs = {slot: known[name].digest or "" for slot, name in stage.row.inputs.items()}
    job = StageJob(
        stage=stage.name,
        version=stage.row.version,
        key=key,
        params=dict(stage.row.params),
        facets=stage.facets,
        inputs={slot: Input(path=str(fresh.path(one)), digest=one) for slot, one in inputs.items()},
        files={},
        output=str(output),
        work=str(fresh.work(stage.name, key)),
        units=str(fresh.units(stage.name)),
    )
    fresh.seal(job, "rebuild", output, {})


def rebuild_one(manifest: Manifest, store: Store, fresh: Store, *, reporter: Reporter) -> Finding:
    """Build one artifact again in `fresh`, from its inputs as they are in `store`.

    Raises `SpeccError` if an input is gone or damaged, or if the stage reads files from outside the store.
    """
    stage, draft = manifest.stage, manifest.params.get("draft") or {}
    if not repeats(stage, manifest.params):
        raise SpeccError(
            "not repeatable: answers of an endpoint",
            note="another machine gave them, and nothing here decides what it would say today",
            hint="`specc verify ID` hashes them again; `specc verify SPEC --rebuild` builds from them all that follows",
        )
    if stage in OUTSIDE or (stage == "draft" and draft.get("init")):
        raise SpeccError(
            f"the stage `{stage}` reads files from outside the store, and its manifest knows only their hashes",
            hint="`specc verify SPEC --rebuild` builds a spec again with its files",
        )
    ready = set(store.digests())
    if gone := [f"{slot} {digest[:12]}" for slot, digest in manifest.inputs.items() if digest not in ready]:
        raise SpeccError(
            f"the artifact was made of {', '.join(gone)}, no longer in the store",
            where=str(store.root),
            hint="build its spec again first, or `specc verify SPEC --rebuild`",
        )
    if streamed := manifest.streamed:
        raise SpeccError(
            f"`{streamed[0]}` was computed while `{stage}` ran, and there is no artifact of it to build from",
            hint="`specc verify SPEC --rebuild` builds a spec again from its sources on",
        )
    for digest in manifest.inputs.values():
        store.require(digest, store.manifest(digest).stage)
    job = StageJob(
        stage=stage,
        version=manifest.version,
        key=manifest.key,
        params=manifest.params,
        facets=manifest.facets,
        inputs={
            slot: Input(path=str(store.path(digest)), digest=digest, key=manifest.keys.get(slot))
            for slot, digest in manifest.inputs.items()
        },
        files={},
        output="",
        work=str(fresh.work(stage, manifest.key)),
        units=str(fresh.units(stage)),
        context={},
    )
    made = run_stage(job, package=PACKAGES[stage], store=fresh, reporter=reporter, name="rebuild")
    return _compared(stage, manifest.digest, made.digest, store, fresh)


def _compared(stage: str, digest: str, rebuilt: str, store: Store, fresh: Store) -> Finding:
    if digest == rebuilt:
        return Finding(stage=stage, digest=digest, state="same", rebuilt=rebuilt)
    if digest in store.digests():
        found = tuple(compare(store.path(digest), fresh.path(rebuilt)))
    else:
        found = ("the first artifact is no longer in the store: there is nothing to compare file by file",)
    return Finding(stage=stage, digest=digest, state="different", rebuilt=rebuilt, differences=found)


def compare(before: Path, after: Path) -> Iterator[str]:
    """Yield in words how one artifact's folder differs from another: by file, and by tensor inside safetensors."""
    old, new = ({path.relative_to(folder).as_posix(): path for path in walk(folder)} for folder in (before, after))
    for name in sorted({*old, *new}):
        if name not in new:
            yield f"{name}: only in the first"
        elif name not in old:
            yield f"{name}: only in the rebuild"
        elif sha256_file(old[name]) != sha256_file(new[name]):
            if name.endswith(".safetensors"):
                yield from (f"{name}: {line}" for line in _tensors(old[name], new[name]))
            else:
                yield f"{name}: other bytes{_first_line(old[name], new[name])}"


def _first_line(old: Path, new: Path) -> str:
    """Say where two text files part."""
    with old.open("rb") as one, new.open("rb") as two:
        for number, (left, right) in enumerate(zip(one, two, strict=False), 1):
            if left != right:
                return f" from line {number} on"
    return " at its end"


def _tensors(old: Path, new: Path) -> Iterator[str]:
    before, after = ({tensor.name: tensor for tensor in tensor_headers(path)} for path in (old, new))
    alike = True
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            alike = False
            yield f"tensor `{name}` only in the {'first' if name in before else 'rebuild'}"
            continue
        one, two = before[name], after[name]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            alike = False
            yield f"tensor `{name}` is {one.dtype} {list(one.shape)} and {two.dtype} {list(two.shape)}"
        elif line := _elements(old, new, one, two):
            alike = False
            yield f"tensor `{name}` {one.dtype} {list(one.shape)}: {line}"
    if alike:
        yield "the tensors are the same, and the header is another"


def _elements(old: Path, new: Path, one: TensorHeader, two: TensorHeader) -> str | None:
    """Say how many elements of two tensors of one shape and dtype differ, bit by bit; None if none does."""
    bits = DTYPE_BITS[one.dtype]
    kind, unit = (UNSIGNED[bits], bits // 8) if bits in UNSIGNED else ("B", 1)
    total, left, first, count, seen = (one.end - one.start) // unit, one.end - one.start, -1, 0, 0
    with old.open("rb") as left_file, new.open("rb") as right_file:
        left_file.seek(tensors_start(left_file) + one.start)
        right_file.seek(tensors_start(right_file) + two.start)
        while left:
            size = min(CHUNK, left)
            here, there = left_file.read(size), right_file.read(size)
            if here != there:
                marks = list(map(operator.ne, memoryview(here).cast(kind), memoryview(there).cast(kind)))
                first = seen + marks.index(True) if first < 0 else first
                count += sum(marks)
            left, seen = left - size, seen + size // unit
    what = "elements" if bits in UNSIGNED else "bytes"
    return f"{count:,} of {total:,} {what} differ, the first at {first:,}" if count else None
