"""Filters of conversations, and what is counted of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specc.core.contracts import Event, Note
from specc.core.errors import SpeccError
from specc.core.files import entries, sha256_file
from specc.core.plan.stages import LANGUAGE_MODEL
from specc.datagen.allowance import LISTED
from specc.datagen.conversations import BAD, conversations
from specc.datagen.minhash import HASHES, NearDuplicates, Signatures, rows_of_band
from specc.datagen.rows import read_rows, read_shards
from stages import make_job, run_here

VOCABULARY = [f"w{i:03d}" for i in range(400)]


def build(folder: Path, lines: list[str], output: str = "output", **data: Any) -> tuple[list[str], Any, list[Event]]:
    """Return the prompts that are kept of a file of `lines`, the artifact's index and the events."""
    path = folder / "p.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    source = {"file": "p.jsonl", "sha256": sha256_file(path), "rows": None}
    fixed = {"validation": {"share": 0.0, "sources": []}, "system_prompt": None, "shard_rows": 4}
    params = {"data": {"sources": [source], **fixed, **data}}
    job = make_job("conversations", folder, params, files={"p.jsonl": path}, output=output)
    events = run_here(conversations, job)
    out = Path(job.output)
    rows = [row for shard in read_shards(out) for row in read_rows(out / shard.file)]
    return [row["messages"][0]["content"] for row in rows], json.loads((out / "index.json").read_text()), events


def prompts(*texts: str) -> list[str]:
    return [json.dumps({"prompt": text}) for text in texts]


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def test_length_is_of_all_messages_and_turns_are_without_the_systems(tmp_path: Path) -> None:
    long = {"messages": [{"role": "system", "content": "s"}, *({"role": role, "content": "c"} for role in
                         ("user", "assistant", "user"))]}  # fmt: skip
    lines = [*prompts("a", "abcd", "abcdefgh"), json.dumps(long)]
    kept, index, events = build(tmp_path, lines, filters={"min_characters": 2, "max_characters": 4})
    assert kept == ["abcd", "s"]
    assert index["removed"] == {"length": 2, "language": 0, "near_duplicates": 0}
    assert "2 of 4 rows are of another length and were left out" in notes(events)
    assert build(tmp_path, lines, filters={"min_turns": 2})[0] == ["s"]
    assert build(tmp_path, lines, filters={"max_turns": 3})[0][-1] == "s"
    assert len(build(tmp_path, lines, filters={"max_turns": 2})[0]) == 3


def test_languages_are_told_from_the_text(tmp_path: Path) -> None:
    texts = ["What is the capital of France, and how many people live there?",
             "Wie heißt die Hauptstadt von Frankreich?",
             "Quelle est la capitale de la France, et combien de gens y vivent ?"]  # fmt: skip
    filters = {"languages": ["en", "fr"], "language_model": LANGUAGE_MODEL}
    kept, index, _ = build(tmp_path, prompts(*texts), filters=filters)
    assert kept == [texts[0], texts[2]]
    assert index["removed"]["language"] == 1
    with pytest.raises(SpeccError, match="`qq` is no language that py3langid tells"):
        build(tmp_path, prompts(*texts), filters={**filters, "languages": ["qq"]})
    with pytest.raises(SpeccError, match=r"needs py3langid 0\.0\.1, and \d") as raised:
        build(tmp_path, prompts(*texts), filters={**filters, "language_model": "py3langid 0.0.1"})
    assert "specc[data]" in (raised.value.hint or "")


def text(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=words))  # noqa: S311 - a text, and no secret


def runs(text: str) -> set[str]:
    return {text[at : at + 8] for at in range(max(1, len(text) - 7))}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 120))
def test_signatures_estimate_the_similarity_of_sets(seed: int, changed: int) -> None:
    one, made = text(seed).split(), Signatures()
    other = list(one)
    for at in random.Random(seed + 1).sample(range(len(one)), changed):  # noqa: S311 - as above
        other[at] = "x" + other[at][1:]
    first, second = " ".join(one), " ".join(other)
    exact = len(runs(first) & runs(second)) / len(runs(first) | runs(second))
    found = made.similarity(made.of(first), made.of(second).tobytes())
    assert abs(found - exact) < 5 * (exact * (1 - exact) / HASHES) ** 0.5 + 1e-9


def test_near_duplicates_of_what_was_kept_are_left_out(tmp_path: Path) -> None:
    texts = [text(seed) for seed in range(12)]
    near = [one.replace("w00", "v00") for one in texts]  # a word of forty
    far = [" ".join([*one.split()[:100], *text(99 + i).split()[:100]]) for i, one in enumerate(texts)]
    everything = [word for three in zip(texts, near, far, strict=True) for word in three]
    kept, index, events = build(tmp_path, prompts(*everything), filters={"near_duplicates": 0.7})
    assert kept == [word for pair in zip(texts, far, strict=True) for word in pair]
    assert index["removed"]["near_duplicates"] == 12
    assert "12 of 36 rows are nearly equal to an earlier one and were left out" in notes(events)
    assert not list((tmp_path / "work").iterdir())
    before = [(entry.path, entry.sha256) for entry in entries(tmp_path / "output")]
    build(tmp_path, prompts(*everything), filters={"near_duplicates": 0.7})
    assert before == [(entry.path, entry.sha256) for entry in entries(tmp_path / "output")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6))
def test_what_is_kept_once_is_not_kept_again(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    with NearDuplicates(tmp_path_factory.getbasetemp() / "near", 0.9) as kept:
        for one in texts:
            kept.add(one)
            assert not kept.add(one)
            assert not kept.add(f"  {one.upper() if one.isascii() else one}\n")


def test_bands_find_a_pair_of_the_asked_similarity() -> None:
    for similarity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        rows = rows_of_band(similarity)
        assert 1 - (1 - similarity**rows) ** (HASHES // rows) >= 0.99
        assert 1 - (1 - (similarity / 4) ** rows) ** (HASHES // rows) < 0.1 or similarity < 0.7  # few others


def test_bad_rows_are_listed_up_to_the_limit(tmp_path: Path) -> None:
    lines = [*prompts("a", "b"), '{"a": }', '{"x": 1}', *prompts("c")]
    kept, index, events = build(tmp_path, lines, bad_rows=2)
    assert kept == ["a", "b", "c"]
    assert index["bad"] == 2
    assert [json.loads(line) for line in (tmp_path / "output" / BAD).read_text().splitlines()] == [
        {"file": "p.jsonl", "line": 3, "reason": "not JSON: Expecting value at column 7"},
        {"file": "p.jsonl", "line": 4, "reason": "unknown shape with the keys `x`"},
    ]  # fmt: skip
    assert f"2 of 5 rows cannot be used and were left out: `{BAD}` of the artifact lists them" in notes(events)
    assert build(tmp_path, lines, bad_rows=0.4)[0] == kept
    with pytest.raises(SpeccError, match=r"^2 rows of 5 cannot be used, and `data.bad_rows` allows 1\n  p.jsonl:3: "):
        build(tmp_path, lines, bad_rows=1)
    with pytest.raises(SpeccError, match=r"^2 rows of 5 cannot be used, and `data.bad_rows` allows 0.39\n"):
        build(tmp_path, lines, bad_rows=0.39)


def test_the_list_of_bad_rows_is_bounded(tmp_path: Path) -> None:
    kept, index, events = build(tmp_path, [*prompts("a"), *["3"] * (LISTED + 500)], bad_rows=0.9999)
    assert (kept, index["bad"]) == (["a"], LISTED + 500)
    assert len((tmp_path / "output" / BAD).read_text().splitlines()) == LISTED
    assert notes(events)[-1].endswith(f"lists the first {LISTED}")


def test_very_many_bad_rows_stop_the_reading(tmp_path: Path) -> None:
    with pytest.raises(
        SpeccError, match=r"^1001 rows of the first 1002 cannot be used\n  p.jsonl:2: (?s:.*)and 991 more$"
    ):
        build(tmp_path, [*prompts("a"), *["3"] * 5000])
    with pytest.raises(
        SpeccError, match=r"^1201 rows of the first 1202 cannot be used, and `data.bad_rows` allows 1200"
    ):
        build(tmp_path, [*prompts("a"), *["3"] * 5000], bad_rows=1200)


def test_nothing_asked_nothing_said(tmp_path: Path) -> None:
    _, index, _ = build(tmp_path, prompts("a", "b"))
    assert set(index) == {"rows", "read", "duplicates", "train", "validation", "shards"}  # as it always was
    assert not (tmp_path / "output" / BAD).exists()
