"""The stage `hidden_states`: vLLM's captures against transformers, repeated, taken up again, and refused."""

from __future__ import annotations

import fcntl
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from small import make_verifier  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402
from specc.core.files import pretty, sha256_file, tensor_headers  # noqa: E402
from specc.datagen.hidden_states import batches, lock_of, read_by_training, read_states, released  # noqa: E402
from specc.train.states import Format  # noqa: E402
from values import values  # noqa: E402
from vllm_runs import facts, keep_first_unit, run  # noqa: E402

pytestmark = pytest.mark.engine

LENGTH = 96
LAYERS = [2, 3, 4]


def write_tokens(folder: Path, shards: list[list[int]]) -> Path:
    """Write an artifact of tokens: `shards` has the rows' lengths. The same rows come first, whatever follows."""
    (folder / "shards").mkdir(parents=True)
    draw, index, row = torch.Generator().manual_seed(0), list[dict[str, Any]](), 0
    for number, lengths in enumerate(shards):
        offsets = torch.tensor([0, *lengths]).cumsum(0)
        name = f"shards/{number:05d}.safetensors"
        tensors = {
            "input_ids": torch.randint(3, 380, (sum(lengths),), generator=draw, dtype=torch.int32),
            "loss_mask": torch.tensor([mark == "x" for row in lengths for mark in mask(row)], dtype=torch.uint8),
            "offsets": offsets,
            "row": torch.arange(row, row + len(lengths)),
            "split": torch.zeros(len(lengths), dtype=torch.uint8),
        }
        save_file(tensors, folder / name)
        row += len(lengths)
        index.append({"file": name, "rows": len(lengths), "tokens": sum(lengths), "trained_tokens": sum(lengths),
                      "sha256": sha256_file(folder / name)})  # fmt: skip
    sums = {key: sum(shard[key] for shard in index) for key in ("rows", "tokens", "trained_tokens")}
    (folder / "index.json").write_text(pretty({**sums, "cut": 0, "left_out": {}, "shards": index}))
    return folder


def mask(length: int) -> str:
    """What of a row is the assistant's: not its first tokens, and not its last one."""
    return ("..." + "x" * length + ".")[:length] if length < 50 else "..." + "x" * (length - 4) + "."


def states(path: Path, lengths: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """The states of a shard's rows, zeros where none are kept."""
    with safe_open(path, "pt") as file:
        return [Format([0, 1, 2, 3], 64, dtype).read(file, row, length) for row, length in enumerate(lengths)]


SHARDS = [[LENGTH, 1, 40, 17, 96, 3, 80], [], [33, 64, 2]]
"""A row as long as the context and one of a single token; a shard whose rows were all left out."""


def test_batches() -> None:
    assert batches([3, 4, 5, 9, 1], 8) == [range(2), range(2, 3), range(3, 4), range(4, 5)], "too long is alone"
    assert batches([], 8) == []
    assert [len(batch) for batch in batches([1] * 600, 4096)] == [255, 255, 90]


def params(verifier: Path, dtype: str) -> dict[str, Any]:
    return values(
        **{"verifier.config": facts(verifier), "verifier.dtype": dtype, "data.sequence_length": LENGTH,
           "draft.hidden_state_layers": LAYERS}
    )  # fmt: skip


def test_they_are_the_verifiers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    verifier = make_verifier(tmp_path / "verifier", dtype="float32", max_position=LENGTH)
    tokens = write_tokens(tmp_path / "tokens", SHARDS)
    output, events, _ = run(
        "hidden_states", tmp_path / "run", params(verifier, "float32"), {"tokens": tokens, "verifier": verifier}
    )
    model = AutoModelForCausalLM.from_pretrained(verifier, dtype=torch.float32)
    last: list[Any] = []
    model.model.norm.register_forward_pre_hook(lambda _, states: last.append(states[0][0]))
    for number, lengths in enumerate(SHARDS):
        packed = load_file(tokens / f"shards/{number:05d}.safetensors")
        path = output / f"shards/{number:05d}.safetensors"
        found = states(path, lengths, torch.float32)
        assert [header.name for header in tensor_headers(path)] == ["blocks", "offsets", "tokens"]
        for row, (start, end) in enumerate(pairwise(packed["offsets"].tolist())):
            with torch.no_grad():
                seen = model(packed["input_ids"][None, start:end].long(), output_hidden_states=True).hidden_states
            expected = torch.stack([*(seen[layer][0] for layer in LAYERS), last.pop()], dim=1)
            kept = mask(end - start).rfind("xx") + 1
            expected[kept:] = 0
            torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
            assert kept == end - start - 2 or end - start < 50, "all but the last target and what follows it"
    assert not list((tmp_path / "run" / "work" / "captured").iterdir())
    assert events[-1].record["tokens"] == sum(map(sum, SHARDS))
    assert {event.unit for event in events if event.event == "progress"} == {"tokens"}


def test_the_bits_repeat_however_the_run_went(tmp_path: Path) -> None:
    verifier = make_verifier(tmp_path / "verifier", max_position=LENGTH)
    inputs = {"tokens": write_tokens(tmp_path / "tokens", SHARDS[::2]), "verifier": verifier}
    whole, _, _ = run("hidden_states", tmp_path / "whole", params(verifier, "bfloat16"), inputs)
    # Killed after its first shard, and then asked for more rows than before.
    keep_first_unit(tmp_path / "whole", tmp_path / "again", whole)
    inputs["tokens"] = write_tokens(tmp_path / "more", [*SHARDS[::2], [20, 50]])
    again, events, _ = run("hidden_states", tmp_path / "again", params(verifier, "bfloat16"), inputs)
    for path in sorted((whole / "shards").iterdir()):
        assert path.read_bytes() == (again / "shards" / path.name).read_bytes()
    assert json.loads((again / "index.json").read_text())["dtype"] == "bfloat16"
    size = sum((whole / "shards" / path.name).stat().st_size for path in (whole / "shards").iterdir())
    assert size < 0.8 * sum(map(sum, SHARDS[::2])) * 4 * 64 * 2 + 2 * 4096
    assert events[-1].record["tokens"] == sum(SHARDS[2]) + 70


@pytest.mark.parametrize(
    ("mask", "kept"),
    [("", 0), ("x", 0), ("xx", 0), ("xxx", 2), ("..xxx", 4), ("..xx.xxx..", 7), ("..x.", 0), ("xx...", 0)],
)
def test_what_training_reads(mask: str, kept: int) -> None:
    assert read_by_training(torch.tensor([mark == "x" for mark in mask], dtype=torch.bool)) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.tensor([1, 2, 4])}, "of other tokens"),
        ({"hidden_states": torch.zeros(3, 1, 4)}, r"\[3, 1, 4\], and torch.float32 \[3, 2, 4\]"),
        ({"hidden_states": torch.zeros(3, 2, 4, dtype=torch.bfloat16)}, "torch.bfloat16"),
        ({"hidden_states": torch.full((3, 2, 4), float("nan"))}, "not finite"),
    ],
)
def test_states_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"hidden_states": torch.zeros(3, 2, 4), "token_ids": torch.tensor([1, 2, 3])}
    save_file({**good, **change}, tmp_path / "s.safetensors")
    with pytest.raises(SpeccError, match=message):
        read_states(tmp_path / "s.safetensors", [1, 2, 3], (2, 4), torch.float32)


def test_a_file_that_the_disk_had_no_room_for(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    for data in (None, b"", b"\x10" + bytes(40)):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(SpeccError, match="not whole"):
            read_states(path, [1], (2, 4), torch.float32)


def test_a_file_is_read_when_its_writer_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    assert not released(path)
    writer = os.open(lock_of(path), os.O_CREAT | os.O_WRONLY)
    fcntl.flock(writer, fcntl.LOCK_EX)
    assert not released(path)
    os.close(writer)
    assert released(path)
