"""A stitched verifier drafts with its own head in vLLM, and as often rightly as the head does in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import drafts
import mtp_heads

pytestmark = pytest.mark.engine
FAMILIES = ("mimo", "qwen3_next")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Serve and replay all families in one process: starting vLLM is dear."""
    from specc.export.stitch import stitched
    from stages import make_job, run_here

    folder, job = tmp_path_factory.mktemp("mtp"), []
    for family in FAMILIES:
        verifier = mtp_heads.make(folder / family, family)
        values = mtp_heads.resolved(family, verifier)
        checkpoint = mtp_heads.checkpoint(folder / f"{family}-head", family, verifier)
        inputs = {"checkpoint": checkpoint, "verifier": verifier}
        stage = make_job("stitched", folder / f"{family}-stitched", values, inputs=inputs)
        run_here(stitched, stage)
        job.append(
            {"verifier": str(verifier), "stitched": stage.output, "checkpoint": str(checkpoint),
             "draft": values["draft"], "config": values["verifier"]["config"]}
        )  # fmt: skip
    found = drafts.run_script(Path(__file__).with_name("serve_mtp.py"), job, folder)
    return dict(zip(FAMILIES, found, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_the_verifiers_own(family: str, counts: dict[str, dict[str, Any]]) -> None:
    assert counts[family]["identical"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_replay_counts_exactly_what_vllm_counts(family: str, counts: dict[str, dict[str, Any]]) -> None:
    """The head that the verifier had before is right nowhere, so that it is the trained one that vLLM runs."""
    assert counts[family]["replayed"] == counts[family]["served"]
    assert counts[family]["served"][1] >= 10


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_on_the_other_side_of_the_final_norm_is_not_what_vllm_feeds(
    family: str, counts: dict[str, dict[str, Any]]
) -> None:
    assert counts[family]["flipped"] != counts[family]["served"]
