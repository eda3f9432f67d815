"""DFlash2 in the speculators format: vLLM's parser, vLLM's own functions, and the way back into training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from export.roundtrip import assert_goes_on_with_the_same_bits, models, written  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.files import tensor_headers  # noqa: E402
from specc.export import read_speculator, require  # noqa: E402
from specc.export.card import card  # noqa: E402
from specc.export.formats import speculator_format  # noqa: E402
from specc.train.models.dflash2 import Convolution  # noqa: E402

pytestmark = pytest.mark.engine

DRAFT: dict[str, Any] = {
    "algorithm": "dflash2", "layers": 2, "vocabulary": 384, "hidden_state_layers": [1, 3, 5, 6], "block_size": 4,
    "sample_from_anchor": False, "sliding_window": 8, "sliding_window_causal": False, "intermediate_size": 96,
    "mask_token": 2, "anchors": 512, "position_weights": {"name": "exponential", "gamma": 4.0},
    "convolution": {"kernel": 3, "group": 8}, "selector": {"rank": 12, "candidates": 5, "weight": 1.0}, "init": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=8, dtype="float32")


@pytest.fixture(scope="module")
def speculator(verifier: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return written(verifier, tmp_path_factory.mktemp("speculator"), DRAFT)


def test_vllm_reads_the_configuration(speculator: tuple[dict[str, Any], Path]) -> None:
    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig

    _, checkpoint = speculator
    config = SpeculatorsConfig.from_pretrained(str(checkpoint))
    assert config.dflash_config == {
        "mask_token_id": 2, "target_layer_ids": [0, 2, 4, 5], "sample_from_anchor": False, "causal": False,
        "conv_kernel_size": 3, "conv_group_size": 8, "selector_rank": 12, "selector_top_k": 5,
    }  # fmt: skip
    assert config.architectures == ["DFlash2DraftModel"]
    assert (config.draft_vocab_size, config.vocab_size) == (384, 384)
    assert (config.num_hidden_layers, config.intermediate_size, config.sliding_window) == (2, 96, 8)
    options = SpeculatorsConfig.extract_vllm_speculative_config(json.loads((checkpoint / "config.json").read_text()))
    assert (options["method"], options["num_speculative_tokens"]) == (algorithm("dflash2").serving["method"], 3)


def test_tensors_are_those_of_the_layout(speculator: tuple[dict[str, Any], Path]) -> None:
    values, checkpoint = speculator
    hidden, vocab = values["verifier"]["config"]["hidden_size"], values["verifier"]["config"]["vocab_size"]
    config, headers = read_speculator(checkpoint)
    require(algorithm("dflash2").layout(DRAFT, values["verifier"]["config"]), headers, "float32", where="here")
    shapes = {header.name: header.shape for header in tensor_headers(checkpoint / "model.safetensors")}
    assert not shapes.keys() & {"embed_tokens.weight", "lm_head.weight", "d2t", "t2d"}, "all shared with the verifier"
    for part in ("attention_conv", "mlp_conv"):
        assert shapes[f"layers.1.{part}.base_kernel"] == (2, 3, hidden)
        assert shapes[f"layers.1.{part}.kernel_projection.weight"] == (2 * 3 * hidden // 8, hidden)
    assert shapes["candidate_selector.hidden_projection.weight"] == (12, hidden)
    assert shapes["candidate_selector.predecessor_codebook"] == (vocab, 12)
    assert shapes["candidate_selector.successor_codebook"] == (vocab, 12)
    back = speculator_format("dflash2").draft(config)
    assert back.pop("selector") == {"rank": 12, "candidates": 5}
    assert back == {name: DRAFT[name] for name in back}
    only = {"anchors", "position_weights", "init", "selector"}
    assert only == DRAFT.keys() - back.keys(), "what only training reads, and the selector's weight"


def test_convolutions_are_what_vllm_computes(speculator: tuple[dict[str, Any], Path]) -> None:
    from vllm.model_executor.models.qwen3_dflash2 import _grouped_conv

    _, checkpoint = speculator
    tensors = load_file(checkpoint / "model.safetensors")
    base = tensors["layers.0.mlp_conv.base_kernel"]
    taps, hidden = base.shape[1:]
    ours = Convolution(hidden, taps, hidden // 8)
    names = ("base_kernel", "kernel_projection.weight")
    ours.load_state_dict({name: tensors[f"layers.0.mlp_conv.{name}"] for name in names})
    x = torch.randn(5, 4, hidden, generator=torch.Generator().manual_seed(1))  # five blocks of four slots
    flat = x.flatten(0, 1)
    both = (flat @ ours.kernel_projection.weight.t()).view(len(flat), 2, taps, -1)
    with torch.no_grad():
        inside, delta = ours.enter(x)
        out = ours.leave(inside, delta)
    for side, (read, made) in enumerate(((flat, inside), (inside.flatten(0, 1), out))):
        theirs = _grouped_conv(read, both[:, side], base[side], 4, hidden // 8, 8, taps)
        assert torch.allclose(made.flatten(0, 1), theirs, atol=1e-5)


def test_drafts_are_what_vllm_selects(speculator: tuple[dict[str, Any], Path], verifier: Path) -> None:
    from vllm.model_executor.models.qwen3_dflash2 import _score_edges

    values, checkpoint = speculator
    _, _, model = models(values, checkpoint, verifier)
    selector, random = model.candidate_selector, torch.Generator().manual_seed(2)
    states = torch.randn(7, 4, values["verifier"]["config"]["hidden_size"], generator=random)
    anchors = torch.randint(384, (7,), generator=random)
    with torch.no_grad():
        selector.predecessor_codebook.mul_(10)
        drafted = model.decode(states, anchors)
        unary, found = (states[:, 1:] @ model.head.weight.t()).topk(5)
        tables = selector.predecessor_codebook, selector.successor_codebook
        edges = _score_edges(*tables, found, unary, selector.hidden_projection(states[:, 1:]), anchors, 5)
    for block, anchor in enumerate(anchors):
        before, tokens = 0, [anchor]
        for slot in range(3):
            before = int(edges[block, slot, before].argmax())  # the row of the candidate that was chosen before
            tokens.append(found[block, slot, before])
            logits = model.following(states[block], torch.stack(tokens[:-1]))
            assert torch.equal(logits.isfinite().nonzero()[:, 0], found[block, slot].sort().values)
        assert drafted[block].tolist() == [int(one) for one in tokens[1:]]
    assert not torch.equal(drafted, found[..., 0]), "the selector had its say"


def test_the_card_says_what_is_particular_to_it(speculator: tuple[dict[str, Any], Path]) -> None:
    words = card(speculator[0])
    assert "over 3 tokens of the block, in groups of 8 channels" in words
    assert "of rank 12, among 5 candidates, weighted 1.0" in words


def test_training_goes_on_with_the_same_bits(speculator: tuple[dict[str, Any], Path], verifier: Path) -> None:
    assert_goes_on_with_the_same_bits(*speculator, verifier)
