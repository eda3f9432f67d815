"""A conversion, compiled: source and verifier pinned, lowered to a small plan, with a lock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specc.core import lock as locks
from specc.core.errors import Exit, SpeccError
from specc.core.execute import machine_name
from specc.core.layouts import layout, section
from specc.core.lock import Lock, Locked, machine_class
from specc.core.plan import Plan, lower
from specc.core.resolve import source, verifier
from specc.core.store import Store
from specc.core.store.manifests import file_name

RUNTIME: Mapping[str, Any] = {"threads": 1, "train": {"ranks": 1}}
"""No stage of a conversion computes with threads or ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A conversion up to its lock.

    `values` are `name`, `source`, `verifier`, `draft`, `decoder`, `export`, `stitch` and `runtime`. `before` is the
    lock on disk, None if there is none. `files` are the places of what is read from this machine.
    """

    path: Path
    values: Mapping[str, Any]
    files: Mapping[str, Path]
    plan: Plan
    store: Store
    before: Lock | None
    lock: Lock

    @property
    def title(self) -> str:
        """What the source is, in words."""
        return layout(self.values["source"]["layout"]).title

    @property
    def ref(self) -> str:
        """The name that the store keeps what comes out under."""
        return file_name(self.plan.name)

    def found(self, digests: Mapping[str, str]) -> Lock:
        """Return the lock with what the stages gave; raises `SpeccError` (exit 4) if one gave something else before."""
        known = self.lock.results.get(self.plan.numerics, {})
        if wrong := [name for name, digest in digests.items() if known.get(name, digest) != digest]:
            first = wrong[0]
            raise SpeccError(
                f"the stage `{first}` came out as sha256:{digests[first][:12]}…, and the lock has"
                f" sha256:{known[first][:12]}…",
                where=self.path.name,
                note="nothing that decides its bits has changed, so this is a difference to be explained",
                hint="remove the lock if it is wrong",
                code=Exit.DIFFERENCE,
            )
        return replace(self.lock, results={**self.lock.results, self.plan.numerics: dict(digests)})


def compile_conversion(
    text: str,
    *,
    verifier_text: str,
    lock: Path,
    named: str | None = None,
    revision: str | None = None,
    verifier_revision: str | None = None,
    tokens: int | None = None,
    stitch: bool = False,
) -> Conversion:
    """Find a source's layout and pin it with its verifier; paths are relative to the working directory.

    What `lock` pins of hub ids is kept, so that a moved branch does not change a conversion. Raises `SpeccError` for
    a source of no layout or of several, one that does not fit the verifier, and one that does not say how many
    tokens it proposes when nobody else does.
    """
    base, store = Path(), Store.locate(Path.cwd() / "spec.yaml")
    before = (locks.read(lock) or {}).get("")
    pinned: Mapping[str, Any] = before.locked.values if before else {}
    asked = {"model": verifier_text, "revision": verifier_revision, "dtype": "bfloat16", "trust_remote_code": False}
    large = verifier.find(asked, base, store.file_digest, pinned.get("verifier"))
    wanted = {"convert": text, **({"revision": revision} if revision else {}), **({"layout": named} if named else {})}
    found = source.find(wanted, base, store.file_digest, pinned.get("source"))
    config = large.facts["config"]
    source.check(found, config)
    if found.config is not None:
        draft, decoder = section(found.layout, found.config, config)
        proposed = tokens or found.layout.tokens(found.config, draft)
    else:  # a hub's, which the lock knows
        draft, decoder = pinned["draft"], {**config, **pinned["decoder"]}
        proposed = tokens or pinned["export"]["speculative_tokens"]
    if proposed is None:
        raise SpeccError(f"the source does not say how many tokens it proposes ({found.layout.title})",
                         hint="`--speculative-tokens 5`, or as many as it was trained for")  # fmt: skip
    if stitch and found.layout.algorithm != "mtp":
        raise SpeccError(f"the source is {found.layout.title}, which is no part of its verifier",
                         hint="leave out `--stitch`", code=Exit.USAGE)  # fmt: skip
    values: dict[str, Any] = {
        "name": found.facts["name"].rpartition("/")[2],
        "source": {"convert": _portable(text), "asked_revision": revision, **found.facts},
        "verifier": {**asked, **large.facts, "model": _portable(verifier_text), "asked_revision": verifier_revision},
        "draft": draft,
        "decoder": {key: value for key, value in decoder.items() if config.get(key) != value},
        "export": {"speculative_tokens": proposed},
        "stitch": stitch,
        "runtime": RUNTIME,
    }
    own, pins = (before.locked.machine, before.locked.engines) if before else (machine_name(), locks.engines())
    machine = machine_class(machine_name(), pins)
    plan = lower(values, machine)
    written = {"source": _portable(text), "verifier": _portable(verifier_text), "layout": named, "revision": revision,
               "speculative_tokens": tokens, "stitch": stitch}  # fmt: skip
    locked = Locked(
        machine=own,
        written={key: value for key, value in written.items() if value},
        values=values,
        stages={stage.name: stage.row.version for stage in plan.stages},
        engines={**(pins if before else {}), machine.name: machine.engines},
    )
    kept = before.results if before and replace(before.locked, engines=locked.engines) == locked else {}
    return Conversion(
        path=lock,
        values=values,
        files={f"{kind}/{name}": path for kind, one in (("source", found), ("verifier", large))
               for name, path in one.files.items()},
        plan=plan,
        store=store,
        before=before,
        lock=Lock(locked=locked, results=kept),
    )  # fmt: skip


def _portable(text: str) -> str:
    """Return what a lock says of a source or a verifier: of a path from the root the last part alone."""
    return Path(text).name if text.startswith(("/", "~")) else text
