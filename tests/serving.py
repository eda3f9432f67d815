"""A store with a small verifier and a checkpoint of a draft that is right at times, as a build leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drafts import assemble, calm, habits, resolved
from small import make_verifier
from specc.core.contracts import Input, Manifest, StageJob
from specc.core.files import sha256
from specc.core.store import Store

PROMPTS = ("Explain bread to a child.", "What is the capital of France?", "The quick brown fox", "Why is the sky blue?")


def seal(  # noqa: PLR0917 - as the job has them
    store: Store,
    stage: str,
    name: str,
    folder: Path,
    params: Mapping[str, Any],
    facets: Mapping[str, Any] | None = None,
    **inputs: str,
) -> Manifest:
    """Put a folder's files into the store as an artifact, and remember it as the last one of the spec `name`."""
    key = sha256(f"{stage} {name}".encode())
    output = store.begin(stage, key)
    shutil.copytree(folder, output, dirs_exist_ok=True)
    job = StageJob(
        stage=stage, version=1, key=key, params=params, facets=facets or {}, files={},
        inputs={slot: Input(path=str(store.path(digest)), digest=digest) for slot, digest in inputs.items()},
        output=str(output), work=str(store.work(stage, key)), units=str(store.units(stage)),
    )  # fmt: skip
    manifest = store.seal(job, name, output, {})
    store.note_last(name, stage, manifest)
    return manifest


def small_checkpoint(folder: Path, store: Store, **draft: Any) -> Manifest:
    """Return a checkpoint in the store, of an fp32 verifier that repeats itself and a random draft for it.

    The draft chooses among the tokens that the verifier writes most, so that some of its guesses are accepted.
    """
    from transformers import AutoTokenizer

    verifier = calm(make_verifier(folder / "verifier", dtype="float32"))
    tokenizer = AutoTokenizer.from_pretrained(str(verifier))
    tokens = habits(verifier, [tokenizer(prompt).input_ids for prompt in PROMPTS], 4)
    values = resolved(verifier, **{"vocabulary": 4, "hidden_state_layers": [1, 3, 4], **draft})
    values["verifier"]["dtype"] = values["export"]["dtype"] = "float32"
    checkpoint = assemble(folder / "checkpoint", values, verifier, tokens=tokens)
    name = values["name"]
    made = seal(store, "verifier", name, verifier, {"name": name})
    params = {key: value for key, value in values.items() if key != "evaluate"}
    return seal(store, "checkpoint", name, checkpoint, params, verifier=made.digest)
