"""Every variant of a checkpoint that the format can say runs in vLLM, and means there what it means in training."""

from __future__ import annotations

from pathlib import Path

import pytest

import drafts
from evaluate.serve_variants import PROMPTS
from small import make_verifier

pytestmark = pytest.mark.engine

VARIANTS: dict[str, dict[str, object]] = {
    # changes to the default draft, or a whole section that names its algorithm
    "default": {},
    "every other way": {
        "layers": 2, "decoder": "qwen3", "hidden_state_layers": [1, 3, 5, 6],
        "vocabulary": 384, "norm_before_fc": False, "fc_norm": True, "norm_output": False,
        "norm_before_residual": False, "sliding_window": 8, "intermediate_size": 96,
    },
    "peagle": {
        "algorithm": "peagle", "layers": 1, "decoder": "llama", "vocabulary": 4, "hidden_state_layers": [2, 4, 5],
        "norm_before_residual": True, "norm_before_fc": True, "sliding_window": None, "intermediate_size": 128,
        "mask_token": 2, "depths": 3, "sampling": {"ratio": 0.7, "floor": 0.2, "anchors": 512}, "init": None,
    },
    "peagle every other way": {
        "algorithm": "peagle", "layers": 2, "decoder": "qwen3", "vocabulary": 4, "hidden_state_layers": [1, 3, 5, 6],
        "norm_before_residual": False, "norm_before_fc": False, "sliding_window": 2, "intermediate_size": 96,
        "mask_token": 7, "depths": 8, "sampling": {"ratio": 1.0, "floor": 0.0, "anchors": 1}, "init": None,
    },
    # One layer each: on a CPU vLLM norms the context's keys of all layers by the first one's weights.
    "dflash": {
        "algorithm": "dflash", "layers": 1, "vocabulary": 4, "hidden_state_layers": [2, 4, 5], "block_size": 4,
        "sample_from_anchor": False, "sliding_window": None, "sliding_window_causal": True, "intermediate_size": 128,
        "mask_token": 2, "anchors": 512, "position_weights": {"name": "dpace", "alpha": 0.5}, "init": None,
    },
    "dflash with a window and shorter drafts than its blocks": {
        "algorithm": "dflash", "layers": 1, "vocabulary": 4, "hidden_state_layers": [1, 3, 5, 6], "block_size": 16,
        "sample_from_anchor": False, "sliding_window": 3, "sliding_window_causal": False, "intermediate_size": 96,
        "mask_token": 7, "anchors": 1, "position_weights": {"name": "uniform"}, "init": None,
    },
    "dflash with a causal window and the full vocabulary": {
        "algorithm": "dflash", "layers": 1, "vocabulary": 384, "hidden_state_layers": [4], "block_size": 4,
        "sample_from_anchor": False, "sliding_window": 8, "sliding_window_causal": True, "intermediate_size": 96,
        "mask_token": 7, "anchors": 1, "position_weights": {"name": "exponential", "gamma": 4.0}, "init": None,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Serve and replay all variants in one process: starting vLLM is dear."""
    folder = tmp_path_factory.mktemp("serving")
    verifier = drafts.calm(make_verifier(folder / "verifier", layers=8, heads=2, kv_heads=1, dtype="float32"))
    known = drafts.habits(verifier, PROMPTS, 4)
    job = {"verifier": str(verifier), "config": drafts.verifier_config(verifier), "variants": []}
    for number, changes in enumerate(VARIANTS.values()):
        values = drafts.resolved(verifier, **(changes if "algorithm" in changes else {"vocabulary": 4, **changes}))
        values["export"]["dtype"] = values["verifier"]["dtype"] = "float32"
        checkpoint = drafts.assemble(folder / str(number), values, verifier, tokens=known)
        job["variants"].append({"folder": str(checkpoint), "draft": values["draft"]})
    found = drafts.run_script(Path(__file__).with_name("serve_variants.py"), job, folder)
    return dict(zip(VARIANTS, found, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_vllm_drafts_with_every_variant_and_changes_no_output(name: str, counts: dict[str, dict[str, object]]) -> None:
    assert counts[name]["identical"]
    assert counts[name]["served"][0] > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_replay_counts_exactly_what_vllm_counts(name: str, counts: dict[str, dict[str, object]]) -> None:
    assert counts[name]["replayed"] == counts[name]["served"]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_decoder_answers_and_counts_exactly_as_vllm(name: str, counts: dict[str, dict[str, object]]) -> None:
    """Of answers that part, only where two tokens are as good as equal; then the counts may part as well."""
    parted = counts[name]["parted"]
    assert sum(len(one["parted"]) for one in counts.values()) <= 0.02 * len(PROMPTS) * len(counts)
    assert all(gap is not None and gap <= 2 for gap in parted)
    assert parted or counts[name]["decoded"] == counts[name]["served"]


def test_some_drafts_were_accepted_so_that_the_counts_say_something(counts: dict[str, dict[str, object]]) -> None:
    assert sum(one["served"][1] for one in counts.values()) >= 10
