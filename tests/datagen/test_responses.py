"""The stage `responses`: a real vLLM answers, turn by turn, the same again, and as transformers would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from small import make_verifier
from specc.core.contracts import Failure
from specc.core.files import pretty, sha256, sha256_file
from specc.datagen.responses import count
from specc.datagen.rows import Message, Row, write_rows
from specc.datagen.talks import Talk
from specc.datagen.template import ChatTemplate, render
from values import values
from vllm_runs import facts, keep_first_unit, run

LENGTH = 256
MOST = 24


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def make_row(number: int, messages: list[Message], name: str | None = None) -> Row:
    return {"id": sha256((name or str(number)).encode()), "row": number, "split": "train", "source": "p.jsonl",
            "line": number + 1, "messages": messages}  # fmt: skip


def write_conversations(folder: Path, shards: Sequence[Sequence[Row]]) -> Path:
    index: list[dict[str, Any]] = []
    for number, rows in enumerate(shards):
        name = f"shards/{number:05d}.jsonl"
        write_rows(folder / name, rows)
        index.append({"file": name, "rows": len(rows), "sha256": sha256_file(folder / name)})
    (folder / "index.json").write_text(pretty({"rows": sum(map(len, shards)), "shards": index}))
    return folder


def read(output: Path) -> list[Row]:
    return [json.loads(line) for path in sorted((output / "shards").iterdir()) for line in path.open()]


def params(verifier: Path, dtype: str, **responses: Any) -> dict[str, Any]:
    return values(
        **{"verifier.config": facts(verifier), "verifier.dtype": dtype, "data.sequence_length": LENGTH,
           "data.responses.max_tokens": MOST, **{f"data.responses.{key}": item for key, item in responses.items()}}
    )  # fmt: skip


TALKS: list[list[Message]] = [
    [user("Explain bread to a child.")],
    [user("What is the capital of France?"), assistant("Lyon, and this is dropped."), user("Why?"), user("Sure?")],
    [{"role": "system", "content": "Be brief."}, user("Explain the sky."), assistant("No."), user("Go on.")],
    [user("Flour " * 400)],
    [user("Mix water."), assistant("x"), user("Yeast " * 400), assistant("y"), user("And then?")],
    [user("The quick brown fox?")],
]
"""One turn; several; a system turn; too long a prompt; a later prompt that is too long."""


@pytest.mark.engine
def test_answers_are_the_verifiers_greedy_ones(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    verifier = make_verifier(tmp_path / "verifier", dtype="float32", max_position=LENGTH)
    rows = [make_row(number, messages) for number, messages in enumerate(TALKS)]
    source = write_conversations(tmp_path / "conversations", [rows[:4], rows[4:]])
    output, events, _ = run(
        "responses", tmp_path / "run", params(verifier, "float32"), {"conversations": source, "verifier": verifier}
    )
    answered = {row["row"]: row for row in read(output)}
    assert sorted(answered) == [0, 1, 2, 4, 5]
    roles = {number: "".join(message["role"][0] for message in row["messages"]) for number, row in answered.items()}
    assert roles == {0: "ua", 1: "uauaua", 2: "suaua", 4: "ua", 5: "ua"}
    assert answered[1]["messages"][0]["content"] == "What is the capital of France?"
    assert "dropped" not in json.dumps(answered)

    model = AutoModelForCausalLM.from_pretrained(verifier, dtype=torch.float32)
    template, tokenizer = ChatTemplate.load(verifier), Tokenizer.from_file(str(verifier / "tokenizer.json"))
    lengths = 0
    for row in answered.values():
        for turn, message in enumerate(row["messages"]):
            if message["role"] != "assistant":
                continue
            text = render(template, row["messages"][:turn], add_generation_prompt=True, date="2026-01-02")
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            room = min(MOST, LENGTH - len(ids))
            with torch.no_grad():
                said = model.generate(torch.tensor([ids]), max_new_tokens=room, do_sample=False)[0, len(ids) :]
            # vLLM holds back half a character at an answer's end, where tokenizers writes a replacement for it.
            assert message["content"] == tokenizer.decode(said.tolist()).rstrip("\ufffd")
            assert message["tokens"] == len(said)
            assert message["finish"] == ("length" if len(said) == room and said[-1] != 2 else "stop")
            lengths += message["finish"] == "length"

    index = json.loads((output / "index.json").read_text())
    assert (index["rows"], index["left_out"], index["shortened"], index["length"]) == (5, 1, 1, lengths)
    answers = [message for row in answered.values() for message in row["messages"] if "tokens" in message]
    assert index["tokens"] == sum(message["tokens"] for message in answers) == events[-1].record["tokens"]
    notes = [event.text for event in events if event.event == "note"]
    assert notes[0].startswith("1 of 6 rows are too long or refused, and left out, the first of them p.jsonl:4 (")
    said = "1 of 6 conversations end before a turn that would be too long, or that follows what a tool answered"
    assert notes[1] == said
    texts = [event.text for event in events if event.event == "progress"]
    assert any(text.endswith("tokens/s") for text in texts)


@pytest.mark.engine
def test_sampling_repeats_however_the_run_went(tmp_path: Path) -> None:
    verifier = make_verifier(tmp_path / "verifier", max_position=LENGTH)
    # More tokens than a step takes, so that a prompt would be read in pieces: a CPU's generators know no way back.
    questions = [user(f"Explain case {number} to a child. " + "Flour and water. " * 6) for number in range(80)]
    rows = [make_row(number, [question]) for number, question in enumerate(questions)]
    # The same question with the same id has the same random stream, in another shard and place.
    rows[79] = make_row(79, [questions[3]], name="3")
    other = make_row(80, [questions[3]], name="another")
    shards = [rows[:70], rows[70:]]
    inputs = {"conversations": write_conversations(tmp_path / "some", shards), "verifier": verifier}
    options = params(verifier, "bfloat16", temperature=1.0, top_p=0.9, seed=7)
    whole, _, _ = run("responses", tmp_path / "whole", options, inputs)
    keep_first_unit(tmp_path / "whole", tmp_path / "again", whole)
    inputs["conversations"] = write_conversations(tmp_path / "more", [*shards, [other]])
    again, events, _ = run("responses", tmp_path / "again", options, inputs)
    assert read(again)[:80] == read(whole)
    for path in sorted((whole / "shards").iterdir()):
        assert path.read_bytes() == (again / "shards" / path.name).read_bytes()
    said = {row["row"]: row["messages"][1] for row in read(again)}
    assert said[3]["content"][:8] == said[79]["content"][:8] != said[80]["content"][:8]
    assert len({message["content"] for message in said.values()}) > 70
    fresh = sum(message.get("tokens", 0) for number, message in said.items() if number >= 70)
    assert events[-1].record["tokens"] == fresh


@pytest.mark.engine
def test_nothing_fits(tmp_path: Path) -> None:
    verifier = make_verifier(tmp_path / "verifier", max_position=LENGTH)
    source = write_conversations(tmp_path / "conversations", [[make_row(0, TALKS[3])]])
    _, events, _ = run("responses", tmp_path / "run", params(verifier, "bfloat16"),
                       {"conversations": source, "verifier": verifier}, code=3)  # fmt: skip
    assert isinstance(events[-1], Failure)
    assert events[-1].message.startswith("no prompt fits into `data.sequence_length` (256)")


def test_a_talk_asks_turn_by_turn() -> None:
    talk = Talk.of(make_row(0, TALKS[2]))
    assert [message["content"] for message in talk.next_prompt()] == ["Be brief.", "Explain the sky."]
    talk.said = [user("said")]
    assert [message["content"] for message in talk.next_prompt()] == ["said", "Go on."]
    assert not talk.asked


def test_counts_come_from_the_rows() -> None:
    asked = [make_row(0, TALKS[1]), make_row(1, TALKS[0]), make_row(2, TALKS[3])]
    cut: Message = {"role": "assistant", "content": "a", "finish": "length", "tokens": 5}
    done: Message = {"role": "assistant", "content": "b", "finish": "stop", "tokens": 7}
    kept = [make_row(0, [TALKS[1][0], cut]), make_row(1, [TALKS[0][0], done])]
    assert count(asked, kept) == {"tokens": 12, "length": 1, "left_out": 1, "shortened": 1}
