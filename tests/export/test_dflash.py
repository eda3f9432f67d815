"""DFlash in the speculators format: what vLLM's own parser makes of it, its tensors, and the way back into training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import drafts  # noqa: E402
from export.roundtrip import assert_goes_on_with_the_same_bits, written  # noqa: E402
from small import make_verifier  # noqa: E402
from specc.core.algorithms import algorithm  # noqa: E402
from specc.core.files import tensor_headers  # noqa: E402
from specc.export import read_speculator, require  # noqa: E402
from specc.export.card import card  # noqa: E402
from specc.export.formats import speculator_format  # noqa: E402

pytestmark = pytest.mark.engine

DRAFT: dict[str, Any] = {
    "algorithm": "dflash", "layers": 2, "vocabulary": 96, "hidden_state_layers": [1, 3, 5, 6], "block_size": 4,
    "sample_from_anchor": False, "sliding_window": 8, "sliding_window_causal": True, "intermediate_size": 96,
    "mask_token": 2, "anchors": 512, "position_weights": {"name": "dpace", "alpha": 0.5}, "init": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_verifier(tmp_path_factory.mktemp("verifier"), layers=8, dtype="float32")


@pytest.mark.parametrize(
    ("changes", "causal"),
    [
        ({}, True),
        ({"sliding_window_causal": False}, False),
        # Without a window a block is never causal: vLLM would take the field for layers without a window too.
        ({"sliding_window": None, "vocabulary": 384}, False),
    ],
)
def test_vllm_reads_the_configuration(changes: dict[str, Any], causal: bool, verifier: Path, tmp_path: Path) -> None:
    from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig

    values, checkpoint = written(verifier, tmp_path, DRAFT | changes)
    config = SpeculatorsConfig.from_pretrained(str(checkpoint))
    draft = values["draft"]
    assert config.dflash_config == {
        "mask_token_id": 2, "target_layer_ids": [0, 2, 4, 5], "sample_from_anchor": False, "causal": causal,
    }  # fmt: skip
    assert config.architectures == ["DFlashDraftModel"]
    assert config.eagle_aux_hidden_state_layer_ids == [1, 3, 5, 6]
    assert (config.draft_vocab_size, config.vocab_size) == (draft["vocabulary"], 384)
    assert (config.num_hidden_layers, config.intermediate_size, config.sliding_window) == (
        2,
        96,
        draft["sliding_window"],
    )
    assert set(config.layer_types) == {"full_attention" if draft["sliding_window"] is None else "sliding_attention"}
    options = SpeculatorsConfig.extract_vllm_speculative_config(json.loads((checkpoint / "config.json").read_text()))
    assert (options["method"], options["num_speculative_tokens"]) == ("dflash", 3)


def test_tensors_are_those_of_the_layout(verifier: Path, tmp_path: Path) -> None:
    values, checkpoint = written(verifier, tmp_path / "small", DRAFT)
    config = values["verifier"]["config"]
    config_read, headers = read_speculator(checkpoint)
    require(algorithm("dflash").layout(values["draft"], config), headers, "float32", where="here")
    names = {header.name for header in headers}
    assert {"lm_head.weight", "d2t", "t2d"} < names
    assert "embed_tokens.weight" not in names, "vLLM shares the verifier's"
    back = speculator_format("dflash").draft(config_read)
    assert back == {name: values["draft"][name] for name in back}
    assert {"anchors", "position_weights", "init"} == values["draft"].keys() - back.keys(), "what only training reads"
    head, embedding = load_file(checkpoint / "model.safetensors"), load_file(verifier / "model.safetensors")
    chosen = head["d2t"] + torch.arange(96)
    assert torch.equal(head["lm_head.weight"], embedding["model.embed_tokens.weight"][chosen])

    _, whole = written(verifier, tmp_path / "whole", DRAFT | {"vocabulary": 384})
    assert not {header.name for header in tensor_headers(whole / "model.safetensors")} & {"lm_head.weight", "d2t"}


def test_embeddings_that_a_verifier_multiplies_are_saved(verifier: Path, tmp_path: Path) -> None:
    values = drafts.resolved(verifier, **DRAFT)
    values["export"]["dtype"] = "float32"
    values["verifier"]["config"]["embedding_scale"] = 16.0
    checkpoint = drafts.assemble(tmp_path, values, verifier)
    read_speculator(checkpoint)  # which holds the tensors to the layout that the configuration implies
    saved, own = load_file(checkpoint / "model.safetensors"), load_file(verifier / "model.safetensors")
    assert torch.equal(saved["embed_tokens.weight"], 16 * own["model.embed_tokens.weight"])


def test_the_card_says_what_is_particular_to_it(verifier: Path) -> None:
    words = card(drafts.resolved(verifier, **DRAFT))
    assert "4 tokens, the anchor's slot proposes nothing; masks are token 2" in words
    assert "positions less than 8 away, and earlier tokens of the block" in words
    assert "dpace (alpha 0.5)" in words


@pytest.mark.parametrize("vocabulary", [96, 384])
def test_training_goes_on_with_the_same_bits(vocabulary: int, verifier: Path, tmp_path: Path) -> None:
    values, checkpoint = written(verifier, tmp_path, DRAFT | {"vocabulary": vocabulary})
    assert_goes_on_with_the_same_bits(values, checkpoint, verifier)
