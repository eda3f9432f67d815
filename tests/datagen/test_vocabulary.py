"""The stage `vocabulary` against a plain twin, and the rules for special and unseen tokens."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from small import CHATML, make_tokenizer
from specc.core.errors import SpeccError
from specc.core.files import sha256_file, tensor_headers
from specc.datagen.vocabulary import choose, kept_always, maps, vocabulary
from stages import make_job, run_here, run_process

SIZE = 448
"""Tokens of the verifier: 384 of the tokenizer and 64 of padding."""
IM_START, IM_END = 1, 2


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, CHATML)
    return folder


def write_tokens(folder: Path, rows: list[tuple[list[int], list[int], int]], per_shard: int = 4) -> Path:
    """Write a `tokens` artifact of rows (ids, mask, split)."""
    (folder / "shards").mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    for start in range(0, len(rows), per_shard):
        part, name = rows[start : start + per_shard], f"shards/{len(shards):05d}.safetensors"
        save_file(
            {
                "input_ids": np.array([i for ids, _, _ in part for i in ids], np.int32),
                "loss_mask": np.array([m for _, mask, _ in part for m in mask], np.uint8),
                "offsets": np.cumsum([0, *(len(ids) for ids, _, _ in part)], dtype=np.int64),
                "row": np.arange(start, start + len(part)),
                "split": np.array([split for _, _, split in part], np.uint8),
            },
            folder / name,
        )
        shards.append({"file": name, "rows": len(part), "sha256": sha256_file(folder / name)})
    (folder / "index.json").write_text(json.dumps({"shards": shards}))
    return folder


def job(folder: Path, tokens: Path, verifier: Path, size: int, vocab_size: int = SIZE):
    config = {"vocab_size": vocab_size, "bos_token_id": IM_START, "eos_token_ids": [IM_END]}
    params = {"draft": {"vocabulary": size}, "verifier": {"config": config}}
    return make_job("vocabulary", folder, params, inputs={"tokens": tokens, "verifier": verifier})


def random_rows(seed: int, count: int = 40) -> list[tuple[list[int], list[int], int]]:
    draw = np.random.default_rng(seed)
    rows: list[tuple[list[int], list[int], int]] = []
    for _ in range(count):
        length = int(draw.integers(0, 30))
        ids = np.minimum(draw.geometric(0.03, length) + 2, 383)
        rows.append((ids.tolist(), draw.integers(0, 2, length).tolist(), int(draw.random() < 0.25)))
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [3, 40, 300, SIZE])
def test_against_a_plain_counter(tmp_path: Path, verifier: Path, seed: int, size: int) -> None:
    rows = random_rows(seed)
    run_here(vocabulary, job(tmp_path, write_tokens(tmp_path / "tokens", rows), verifier, size))

    counts = [Counter[int](), Counter[int]()]
    for ids, mask, split in rows:
        counts[split].update(token for token, trained in zip(ids, mask, strict=True) if trained)
    others = sorted(set(range(SIZE)) - {IM_START, IM_END}, key=lambda token: (-counts[0][token], token))
    expected = sorted([IM_START, IM_END, *others[: size - 2]])

    found = load_file(tmp_path / "output" / "vocabulary.safetensors")
    assert [i + int(found["d2t"][i]) for i in range(size)] == expected
    assert np.flatnonzero(found["t2d"]).tolist() == expected
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    assert report == {
        "size": size,
        "distinct": len(counts[0]),
        "trained_tokens": counts[0].total(),
        "coverage": {
            name: [sum(counter[token] for token in expected), counter.total()]
            for name, counter in zip(("train", "validation"), counts, strict=True)
        },
    }


def test_the_tensors_are_the_formats(tmp_path: Path, verifier: Path) -> None:
    run_here(vocabulary, job(tmp_path, write_tokens(tmp_path / "tokens", random_rows(0)), verifier, 16))
    headers = tensor_headers(tmp_path / "output" / "vocabulary.safetensors")
    assert [(h.name, h.dtype, h.shape) for h in headers] == [("d2t", "I64", (16,)), ("t2d", "BOOL", (SIZE,))]


def test_the_drawn_example() -> None:
    d2t, t2d = maps(np.array([1, 4, 5]), 6)
    assert d2t.tolist() == [1, 3, 3]
    assert t2d.tolist() == [False, True, False, False, True, True]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_choosing(counts: list[int], data: st.DataObject) -> None:
    always = data.draw(st.sets(st.integers(0, len(counts) - 1)))
    size = data.draw(st.integers(max(1, len(always)), max(1, len(counts))))
    chosen = choose(np.array(counts), size, always).tolist()
    assert len(chosen) == size
    assert chosen == sorted(set(chosen))
    assert always <= set(chosen)
    free = [token for token in range(len(counts)) if token not in always]
    ranked = sorted(free, key=lambda token: (-counts[token], token))
    assert set(chosen) - always == set(ranked[: size - len(always)])


def test_special_tokens_are_kept_if_they_were_said() -> None:
    counts = np.zeros(10, np.int64)
    counts[7] = 1
    specials = {5: "<tool>", 7: "<think>", 12: "<beyond the embeddings>"}
    assert kept_always(counts, {"bos_token_id": None, "eos_token_ids": [3, 4]}, specials) == {3, 4, 7}
    assert kept_always(counts, {"bos_token_id": 0, "eos_token_ids": [3]}, specials) == {0, 3, 7}


def test_refusals(tmp_path: Path, verifier: Path) -> None:
    rows = random_rows(0)
    tokens = write_tokens(tmp_path / "tokens", rows)
    with pytest.raises(SpeccError, match=r"`draft.vocabulary` is 449, and the verifier has 448 tokens"):
        run_here(vocabulary, job(tmp_path, tokens, verifier, SIZE + 1))
    with pytest.raises(SpeccError, match=r"`draft.vocabulary` is 1, and 2 special tokens must be in it"):
        run_here(vocabulary, job(tmp_path, tokens, verifier, 1))
    empty = write_tokens(tmp_path / "empty", [(ids, mask, 1) for ids, mask, _ in rows])
    with pytest.raises(SpeccError, match="the training split has no trained token"):
        run_here(vocabulary, job(tmp_path, empty, verifier, 16))


def test_as_a_process(tmp_path: Path, verifier: Path) -> None:
    made = job(tmp_path, write_tokens(tmp_path / "tokens", random_rows(0)), verifier, 16)
    code, _, log = run_process("datagen", made, tmp_path)
    assert code == 0, log
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["report.json", "vocabulary.safetensors"]
