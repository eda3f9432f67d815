"""A draft for a verifier that takes images, from a spec to vLLM, by the command line and real engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import drafts
from llava import data_url, make_llava, picture
from projects import Project
from safetensor import one_tensor
from test_end_to_end import specc

SPEC = """\
version: 1
name: tiny
verifier: {model: ./tiny, dtype: float32}
draft: {algorithm: eagle3, hidden_state_layers: [1, 3, 5]}
data:
  sources: [{file: rows.jsonl, images: pictures}]
  responses: {from: verifier, max_tokens: 32}
  validation: 0.1
  sequence_length: 160
  shard_rows: 32
train:
  epochs: 8
  batch_tokens: 640
  precision: fp32
  optimizer: {name: adamw, learning_rate: 4e-3}
evaluate:
  prompts: [{file: held-out.jsonl}]
  max_tokens: 48
  lossless_prompts: 12
checks: {lossless: true}
runtime: {threads: 2}
"""
PLAIN = SPEC.partition("evaluate:")[0].replace("from: verifier, max_tokens: 32", "from: data")
"""The spec with the data's own answers, and without what an engine measures."""
COLORS = [(200, 30, 30), (30, 200, 30), (20, 40, 200), (240, 240, 20), (0, 0, 0)]


def write_project(folder: Path, rows: int, **more: Any) -> None:
    """Write rows of LLaVA's shape, two in three of them with an image in a file, and the spec."""
    (folder / "pictures").mkdir(parents=True)
    for number, color in enumerate(COLORS):
        (folder / f"pictures/{number}.png").write_bytes(picture(color, (40 + 10 * number, 30)))
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            asked = f"What is this, case {number}?"
            shown = {} if number % 3 == 0 else {"image": f"{number % len(COLORS)}.png"}
            turns = [{"from": "human", "value": f"<image>\n{asked}" if shown else asked},
                     {"from": "gpt", "value": f"A disc of number {number}."}]  # fmt: skip
            file.write(json.dumps({**shown, "conversations": turns, **more}) + "\n")
    (folder / "tiny.yaml").write_text(SPEC)


def locked_project(folder: Path, rows: int) -> Project:
    """Write a project whose verifier has no weights to run, and lock it."""
    write_project(folder, rows)
    make_llava(folder / "tiny", weights=False)
    (folder / "tiny/model.safetensors").write_bytes(one_tensor())
    (folder / "tiny.yaml").write_text(PLAIN)
    project = Project(folder, folder / ".specc/store")
    project.run("lock", "tiny.yaml")
    return project


def test_images_are_locked_shown_and_kept(tmp_path: Path) -> None:
    """What needs no engine: the lock's pins, the rows as they will be trained, and a lock that images make stale."""
    project = locked_project(tmp_path, 12)
    lock = json.loads((tmp_path / "tiny.lock.json").read_text())
    (source,) = lock["locked"]["values"]["data"]["sources"]
    assert sorted(source["image_files"]) == [f"pictures/{number}.png" for number in range(len(COLORS))]
    built = project.build("conversations")
    (artifact,) = project.store.glob("*-conversations-*/")
    assert len(list((artifact / "images").glob("*/*"))) == len(COLORS)
    (tmp_path / "pictures/0.png").write_bytes(picture((1, 2, 3)))
    _, said = project.run("lock", "--check", "tiny.yaml", expect=1)
    assert "pictures/0.png" in said
    assert project.build("conversations") != built


@pytest.mark.engine
def test_rows_are_shown_with_their_images_marked(tmp_path: Path) -> None:
    project = locked_project(tmp_path, 6)
    out, _ = project.run("show", "--row", "2", "tiny.yaml")
    assert out == (
        "rows.jsonl:2  64 tokens of which 16 are trained (25 %)\n"
        "  <|im_start|>user\n  <image>\n  What is this, case 1?<|im_end|>\n"
        "  <|im_start|>assistant\n  ⟦A disc of number 1.<|im_end|>⟧\n"
    )


@pytest.mark.engine
@pytest.mark.full
def test_a_draft_is_served_with_images_as_it_was_trained(tmp_path: Path) -> None:
    """Served and replayed counts are equal, and the output is the verifier's own, with images in prompts and without.

    The replay is transformers' LLaVA, with the draft as it is trained.
    """
    write_project(tmp_path, 96)
    drafts.calm(make_llava(tmp_path / "tiny", dtype="float32"))
    with (tmp_path / "held-out.jsonl").open("w") as file:
        for number in range(12):
            text = {"type": "text", "text": f"What is this, case {500 + number}?"}
            url = data_url(picture(COLORS[number % len(COLORS)], (30, 30 + number)))
            shown = [{"type": "image_url", "image_url": {"url": url}}] if number % 2 else []
            file.write(json.dumps({"messages": [{"role": "user", "content": [*shown, text]}]}) + "\n")
    built = json.loads(specc(tmp_path, "build", "--json", "tiny.yaml").stdout)
    assert set(built["artifacts"]) >= {"conversations", "responses", "hidden_states", "checkpoint", "evaluation"}
    (folder,) = (tmp_path / ".specc/store").glob("*-evaluation-*/")
    found = json.loads((folder / "evaluation.json").read_text())
    served, simulated = found["served"], found["simulated"]
    assert (found["runtime"], found["prompts"]) == ("vllm", 12)
    assert served["accepted"] >= 5
    assert [served[name] for name in ("drafts", "accepted", "accepted_per_position")] == [
        simulated[name] for name in ("drafts", "accepted", "accepted_per_position")
    ]
    assert found["lossless"]["fp32"]["identical"] == found["lossless"]["fp32"]["prompts"] == 12
