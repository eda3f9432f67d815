"""What a command is about: a spec's file, or the start of an artifact's id."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.store import Store


def is_spec(target: str) -> bool:
    """Tell a spec's file from an artifact's id."""
    return target.endswith((".yaml", ".yml")) or Path(target).is_file()


def named(path: Path, only: Collection[str]) -> tuple[str, Store]:
    """Return what the store knows a spec's artifacts by, and the store; of a matrix, one build is meant.

    The spec is checked and not resolved: its verifier need not be here.
    """
    from specc.core.language import check, matrix  # an id is looked up without the language
    from specc.core.plan import plan_name

    builds = {checked.build: checked for checked in check(path)}
    name = matrix.choose_one(list(builds), only)
    values = builds[name].spec.values()
    return plan_name(values, name), Store.locate(path, values["runtime"].get("store"))


def checkpoint_of(target: str, only: Collection[str] = ()) -> tuple[Store, Manifest]:
    """Return the checkpoint that `target` means, a spec's file or the start of an id, and the store that it is in.

    Raises `SpeccError` if it means none, or an artifact of another stage.
    """
    if is_spec(target):
        name, store = named(Path(target), only)
        checkpoint = store.last(name, "checkpoint")
        if checkpoint is None:
            raise SpeccError(f"`{name}` was never built here", where=str(store.root),
                             hint=f"`specc build {target}` builds it")  # fmt: skip
        return store, checkpoint
    store = Store.locate(Path.cwd() / "spec.yaml")
    checkpoint = store.manifest(store.resolve(target))
    if checkpoint.stage == "stitched":
        checkpoint = store.manifest(checkpoint.inputs["checkpoint"])
    if checkpoint.stage not in ("checkpoint", "converted"):
        raise SpeccError(
            f"`{target}` is an artifact of the stage `{checkpoint.stage}`, and a checkpoint is asked for",
            hint="`specc status SPEC` lists a spec's artifacts",
        )
    return store, checkpoint
