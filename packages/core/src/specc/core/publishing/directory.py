"""A checkpoint as a plain directory: what vLLM, the speculators library and a hub read, its evaluation in the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.files import copy_files, new_folder, pretty, sha256_file
from specc.core.measure.acceptance import greedy
from specc.core.serving.served import is_stitched, stitched_of, values_of
from specc.core.store import Store
from specc.core.store.manifests import SHORT

RUNTIMES: Final = {"vllm": "vLLM", "reference": "specc's own decoder"}
ROWS: Final = {"served": "this draft", "untrained": "before training", "simulated": "this draft, replayed by specc"}
BEFORE: Final = "\n## Licence\n"
"""The section of a card that the evaluation comes before."""
INSIDE: Final = "SPECULATOR.md"
"""The card's name beside a verifier's own files."""


def export(
    store: Store,
    checkpoint: Manifest,
    to: Path,
    *,
    verifier: str | None = None,
    head: bool = False,
    finish: Callable[[Path], None] = lambda folder: None,
) -> Manifest | None:
    """Write a checkpoint to a new or empty directory `to`, whole or not at all; return the evaluation that it states.

    A draft that is stitched comes as the whole verifier with it inside, unless the `head` alone is wanted. `verifier`
    takes the place of `verifier.name_or_path`. `finish` is called with the whole directory before it gets its place.
    Raises `SpeccError` if `to` has files, if an artifact is gone or is not what was sealed, or if there is nothing
    that `verifier` or `head` could mean.
    """
    stitched = is_stitched(values_of(store, checkpoint)["draft"])
    if head and not stitched:
        raise SpeccError("`--head` is for a draft that is stitched into its verifier, and this one is whole by itself",
                         hint="leave it out", code=Exit.USAGE)  # fmt: skip
    inside = stitched_of(store, checkpoint) if stitched and not head else None
    if inside and verifier:
        raise SpeccError("what is exported is the verifier itself, which names no other", hint="leave out `--verifier`,"
                         " or export the `--head` alone", code=Exit.USAGE)  # fmt: skip
    evaluation = evaluation_of(store, checkpoint)
    with store.lease() as hold, new_folder(to) as folder:
        for manifest in filter(None, (checkpoint, inside, evaluation)):
            hold(manifest.digest)
            store.require(manifest.digest, manifest.stage)
        source = store.path(checkpoint.digest)
        card = (source / "README.md").read_text("utf-8")
        if evaluation:
            card = _with(card, evaluation_words(_read(store, evaluation), evaluation.digest))
        if inside:
            copy_files(store.path(inside.digest), folder)
            shutil.copyfile(source / "specc.json", folder / "specc.json")
            (folder / INSIDE).write_text(card, "utf-8")
        else:
            copy_files(source, folder)
            (folder / "README.md").write_text(card, "utf-8")
            if verifier:
                _name_verifier(folder / "config.json", verifier)
            _say_what_changed(folder)
        finish(folder)
    return evaluation


def evaluation_of(store: Store, checkpoint: Manifest) -> Manifest | None:
    """Return the newest evaluation of a checkpoint in the store."""
    present = set(store.digests())
    found = {
        store.record(manifest.key).get("order", 0): manifest
        for manifest in store.indexed()
        if manifest.stage == "evaluation"
        and manifest.inputs.get("checkpoint") == checkpoint.digest
        and manifest.digest in present
    }
    return found[max(found)] if found else None


def evaluation_words(found: Mapping[str, Any], digest: str) -> str:
    """Return the section of a card that states an evaluation: `evaluation.json` in words."""
    lines = [
        "## Evaluation",
        "",
        f"Counted in {RUNTIMES.get(found['runtime'], found['runtime'])} over {found['prompts']} prompts that it was not"
        f" trained on, decoded greedily with {found['speculative_tokens']} speculative tokens (the artifact"
        f" `sha256:{digest[:SHORT]}`). *Mean acceptance length* is accepted tokens per draft + 1.",
        "",
        "| | drafts | accepted tokens | mean acceptance length | accepted at each position |",
        "|---|---|---|---|---|",
    ]
    for name, title in ROWS.items():
        counts: Mapping[str, Any] | None = found.get(name)
        if counts:
            drafts = counts["drafts"]
            shares = " ".join(f"{count / drafts:.2f}" for count in counts["accepted_per_position"] if drafts)
            lines.append(f"| {title} | {drafts:,} | {counts['accepted']:,} | {counts['mean_acceptance_length']:.3f} |"
                         f" {shares} |")  # fmt: skip
    lines += [
        f"\nGreedy output in {dtype} with and without it: {lossless['identical']} of {lossless['prompts']} prompts the"
        " same, token for token."
        for dtype, lossless in greedy(found).items()
    ]
    return "\n".join(lines) + "\n"


def _with(card: str, section: str) -> str:
    """Return a card with a section before the one on its licence, or at its end."""
    before, licence, after = card.partition(BEFORE)
    return f"{before.rstrip()}\n\n{section}{licence}{after}" if licence else f"{card.rstrip()}\n\n{section}"


def _name_verifier(path: Path, verifier: str) -> None:
    config: dict[str, Any] = json.loads(path.read_text("utf-8"))
    config["speculators_config"]["verifier"]["name_or_path"] = verifier
    path.write_text(pretty(config), "utf-8")


def _say_what_changed(folder: Path) -> None:
    """Give the provenance the digests of the files as they are in this copy."""
    path = folder / "provenance.json"
    statement: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for subject in statement["subject"]:
        subject["digest"] = {"sha256": sha256_file(folder / subject["name"])}
    path.write_text(pretty(statement), "utf-8")


def _read(store: Store, evaluation: Manifest) -> dict[str, Any]:
    return json.loads((store.path(evaluation.digest) / "evaluation.json").read_text("utf-8"))
