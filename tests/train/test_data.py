"""What is read of the shards and of the verifier, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from specc.core.errors import SpeccError  # noqa: E402
from specc.datagen.hidden_states import read_by_training  # noqa: E402
from specc.train.data import Corpus  # noqa: E402
from specc.train.models import build, trained  # noqa: E402
from specc.train.models.rows import depths, even  # noqa: E402
from specc.train.optim import learning_rate  # noqa: E402
from specc.train.states import Document, Format, OnDisk  # noqa: E402
from specc.train.verifier import read_verifier  # noqa: E402
from train.world import DRAFT, LAYERS, SMALL, VERIFIER, World, corpus, stream  # noqa: E402

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world") / "w")


def test_a_batch_holds_what_the_shards_hold(world: World) -> None:
    data = corpus(world)
    assert (len(data.training), len(data.validation), data.left_out) == (36, 4, 0)
    shard = load_file(world.folder / "tokens/shards/00001.safetensors")
    read = Format([0, 1, 2, 3], 64, torch.bfloat16).read
    with safe_open(world.folder / "hidden_states/shards/00001.safetensors", "pt") as file:
        parts = [read(file, row, size) for row, size in enumerate(shard["offsets"].diff().tolist())]
    states = torch.cat(parts)
    frozen = read_verifier(world.folder / "verifier", VERIFIER, None, torch.float32)
    some = [document for document in data.training if document.row in {25, 31}]
    weights = {spec.name: torch.zeros(spec.shape) for spec in trained(DRAFT, VERIFIER)}
    head = replace(frozen.head, weight=frozen.head.weight[:SMALL])
    model = build(DRAFT, VERIFIER, weights, replace(frozen, head=head), torch.arange(SMALL))
    rows, targets = data.batch(some, model, frozen.normed, stream(0)).content
    base = place = 0
    for document in some:
        start, end = shard["offsets"][document.row - 20 : document.row - 18].tolist()
        first = int(shard["loss_mask"][start:end].nonzero()[0])
        assert document.rows == end - start - 2, "up to the last target's row"
        for row in range(document.rows):
            assert rows.tokens[base + row] == shard["input_ids"][start + row + 1]
            assert torch.equal(rows.aux[base + row], states[start + row, :3].flatten().float())
        for target in range(first + 1, end - start):
            assert torch.equal(targets.normed[place], frozen.normed(states[start + target - 1, 3].float()))
            assert targets.counted[:, place].tolist() == [target - first > k for k in range(3)]
            place += 1
        base += document.rows
    assert not targets.counted[:, place:].any()
    assert targets.counted.shape[1] == even(place)


class Nowhere:
    """States that nobody may ask for."""

    def read(self, document: Document, tokens: int) -> torch.Tensor:
        raise AssertionError(document, tokens)

    def window_done(self) -> None:
        raise AssertionError("nothing was read")


def test_documents_are_found_as_one_at_a_time(tmp_path: Path) -> None:
    """The scan of a whole shard against its plain twin: rows with nothing to learn, empty, all answer, of two turns."""
    masks = ["..xxx", "....", "", "xxxxx", "..x.", "..xx.xxx", "..x", "..xxxx"]
    flat = torch.tensor([mark == "x" for row in masks for mark in row], dtype=torch.uint8)
    offsets = torch.tensor([0, *(len(row) for row in masks)]).cumsum(0)
    save_file({"input_ids": torch.arange(len(flat), dtype=torch.int32), "loss_mask": flat, "offsets": offsets,
               "row": torch.arange(100, 100 + len(masks)),
               "split": torch.tensor([0, 0, 0, 0, 1, 1, 0, 0], dtype=torch.uint8)},
              tmp_path / "0.safetensors")  # fmt: skip
    shard = {"file": "0.safetensors", "rows": len(masks), "tokens": len(flat), "sha256": "a"}
    (tmp_path / "index.json").write_text(json.dumps({"shards": [shard]}))
    data = Corpus(tmp_path, Nowhere())
    expected: list[Document] = []
    for place, row in enumerate(masks):
        proposed = (depths(torch.tensor([mark == "x" for mark in row], dtype=torch.bool)) >= 0).nonzero()
        if len(proposed):
            start = int(offsets[place])
            expected.append(Document(0, place, start, len(row), int(proposed[-1]) - 1, 100 + place))
    assert [*data.training, *data.validation] == sorted(expected, key=lambda one: one.row in {104, 105})
    assert data.left_out == len(masks) - len(expected) == 4
    assert data.training.tokens == sum(one.tokens for one in data.training)
    for document in expected:
        mask = data.mask(document)
        assert read_by_training(mask) == document.rows + 1, "what is kept is what is read"
    kept = [read_by_training(torch.tensor([mark == "x" for mark in row], dtype=torch.bool)) for row in masks]
    assert sum(count > 0 for count in kept) == len(expected)


def test_hidden_states_of_other_tokens_are_refused(world: World, tmp_path: Path) -> None:
    for name in ("tokens", "hidden_states"):
        (tmp_path / name).mkdir()
        index = json.loads((world.folder / name / "index.json").read_text())
        index["shards"][1]["sha256"] = "0" * 64
        (tmp_path / name / "index.json").write_text(json.dumps(index))
    with pytest.raises(SpeccError, match="made from other tokens"):
        OnDisk(tmp_path / "hidden_states", tmp_path / "tokens", [2, 3, 4, LAYERS])
    with pytest.raises(SpeccError, match="no layer 5"):
        OnDisk(world.folder / "hidden_states", world.folder / "tokens", [2, 3, 5, LAYERS])


def test_a_missing_tensor_is_refused_not_guessed(world: World, tmp_path: Path) -> None:
    tensors = load_file(world.folder / "verifier/model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for name in tensors:
        save_file({one: tensor for one, tensor in tensors.items() if one != name}, tmp_path / "model.safetensors")
        with pytest.raises(SpeccError, match=f"the verifier has no tensor `{name}`"):
            read_verifier(tmp_path, VERIFIER, None, torch.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpeccError, match=r"the verifier has no tensor `lm_head\.weight`"):
        read_verifier(tmp_path, VERIFIER | {"tie_word_embeddings": False}, None, torch.float32)
    save_file(tensors | {"model.norm.bias": tensors["model.norm.weight"].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(SpeccError, match=r"`model\.norm\.bias`, which training does not know"):
        read_verifier(tmp_path, VERIFIER, None, torch.float32)


def test_learning_rates() -> None:
    def rates(name: str, warmup: float) -> list[float]:
        return [round(learning_rate(step, 10, 1.0, {"name": name, "warmup": warmup}), 4) for step in range(10)]

    assert rates("constant", 0.2) == [0.5, *[1.0] * 9]
    assert rates("constant", 4) == [0.25, 0.5, 0.75, *[1.0] * 7]
    assert rates("linear", 0) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates("cosine", 0.2) == [0.5, 1.0, 1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]
    with pytest.raises(SpeccError, match="no schedule `wsd`"):
        learning_rate(5, 10, 1.0, {"name": "wsd", "warmup": 0})
