"""Hidden states as they are written and read: no bit is lost, whatever the numbers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import zstandard  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors import SafetensorError, safe_open  # noqa: E402

from specc.core.files import tensor_headers  # noqa: E402
from specc.datagen.encoding import HEADER, StatesFile, compressor, encode  # noqa: E402
from specc.train.states import Format  # noqa: E402

pytestmark = pytest.mark.engine
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
HIDDEN = 24


def words(dtype: torch.dtype, shape: tuple[int, ...], seed: int, *, normal: bool) -> torch.Tensor:
    """Numbers of a dtype: like a network's, or any bits that are no NaN and not infinite."""
    draw = torch.Generator().manual_seed(seed)
    if normal:
        return torch.randn(shape, generator=draw).to(dtype)
    info = torch.iinfo(WORDS[dtype])
    bits = torch.randint(info.min, info.max, shape, generator=draw, dtype=WORDS[dtype])
    return torch.where(bits.view(dtype).isfinite(), bits, -bits * 0).view(dtype)


def write(path: Path, rows: list[torch.Tensor], layers: int) -> None:
    with StatesFile(path, len(rows), layers) as file:
        for row in rows:
            file.add(row)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(DTYPES), st.lists(st.integers(0, 40), max_size=5), st.integers(1, 4), st.integers(0, 9),
    st.booleans(), st.data(),
)  # fmt: skip
def test_every_bit_comes_back(  # noqa: PLR0917 - hypothesis gives them by place
    dtype: torch.dtype, sizes: list[int], layers: int, seed: int, normal: bool, data: st.DataObject
) -> None:
    rows = [words(dtype, (size, layers, HIDDEN), seed + n, normal=normal) for n, size in enumerate(sizes)]
    columns = data.draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=4))
    with TemporaryDirectory() as name:
        path = Path(name) / "s.safetensors"
        write(path, rows, layers)
        assert [header.name for header in tensor_headers(path)] == ["blocks", "offsets", "tokens"]
        with safe_open(path, "pt") as file:
            assert file.get_tensor("tokens").tolist() == sizes
            for number, row in enumerate(rows):
                count = data.draw(st.integers(0, len(row) + 3))
                found = Format(columns, HIDDEN, dtype).read(file, number, count)
                kept = min(count, len(row))
                assert found.shape == (count, len(columns), HIDDEN)
                assert torch.equal(found[:kept].view(WORDS[dtype]), row[:kept, columns].view(WORDS[dtype]))
                assert not found[kept:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_what_its_description_says(dtype: torch.dtype) -> None:
    """The same, number by number: rotated left, the exponent's byte apart."""
    states = words(dtype, (3, 5), 1, normal=False)
    width = states.element_size()
    found = encode(states, compressor())
    high = zstandard.ZstdDecompressor().decompress(found[15 * (width - 1) :])
    for place, number in enumerate(states.flatten()):
        bits = int(number.view(WORDS[dtype])) % (1 << 8 * width)
        rotated = ((bits << 1) | (bits >> (8 * width - 1))) % (1 << 8 * width)
        assert list(rotated.to_bytes(width, "little")) == [*found[place : 15 * (width - 1) : 15], high[place]]


def test_bf16_as_networks_have_it_takes_less_than_seven_tenths() -> None:
    states = words(torch.bfloat16, (128, 576), 0, normal=True)
    assert len(encode(states, compressor())) < 0.7 * states.nbytes


def test_a_shard_without_rows_or_states_is_a_file_like_others(tmp_path: Path) -> None:
    for rows in ([], [torch.zeros(0, 2, HIDDEN)] * 3):
        write(tmp_path / "s.safetensors", rows, 2)
        sizes = {header.name: header.shape for header in tensor_headers(tmp_path / "s.safetensors")}
        assert sizes == {"blocks": (0,), "offsets": (2 * len(rows) + 1,), "tokens": (len(rows),)}
        assert (tmp_path / "s.safetensors").stat().st_size == 8 + HEADER + 8 * (3 * len(rows) + 1)


def test_a_shard_that_was_not_finished_cannot_be_read(tmp_path: Path) -> None:
    def stop() -> None:
        with StatesFile(tmp_path / "s.safetensors", 2, 1) as file:
            file.add(torch.randn(4, 1, HIDDEN))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stop()
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "s.safetensors", "pt").__enter__()


@pytest.mark.parametrize("change", [{"hidden": HIDDEN - 1}, {"dtype": torch.float32}])
def test_what_has_other_sizes_is_never_taken_for_states(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "s.safetensors", [words(torch.bfloat16, (9, 2, HIDDEN), n, normal=True) for n in range(3)], 2)
    about = {"columns": [0, 1], "hidden": HIDDEN, "dtype": torch.bfloat16, **change}
    with safe_open(tmp_path / "s.safetensors", "pt") as file, pytest.raises((ValueError, zstandard.ZstdError)):
        Format(**about).read(file, 1, 9)


def test_the_reader_gives_what_may_be_written_to(tmp_path: Path) -> None:
    write(tmp_path / "s.safetensors", [torch.ones(2, 1, HIDDEN)], 1)
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        one, other = (Format([0], HIDDEN, torch.float32).read(file, 0, 2) for _ in range(2))
    one += 1
    assert np.array_equal(other.numpy(), np.ones((2, 1, HIDDEN)))
