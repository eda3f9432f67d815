"""Every variant of a checkpoint that the format can say runs in vLLM, and means there what it means in training."""

from __future__ import annotations

import json
import subprocess
import sys
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
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("serve_variants.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "job.json")],
        env=drafts.environment(folder), capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(VARIANTS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_vllm_drafts_with_every_variant_and_changes_no_output(name: str, counts: dict[str, dict[str, object]]) -> None:
    assert counts[name]["identical"]
    assert counts[name]["served"][0] > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_the_replay_counts_exactly_what_vllm_counts(name: str, counts: dict[str, dict[str, object]]) -> None:
    assert counts[name]["replayed"] == counts[name]["served"]


def test_some_drafts_were_accepted_so_that_the_counts_say_something(counts: dict[str, dict[str, object]]) -> None:
    assert sum(one["served"][1] for one in counts.values()) >= 10
