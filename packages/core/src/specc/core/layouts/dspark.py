"""DSpark as DeepSeek publishes it.

From `deepspec/modeling/dspark` of deepseek-ai/DeepSpec (`qwen3/modeling.py`, `qwen3/config.py`, `common.py`,
`markov_head.py`), which wrote `deepseek-ai/dspark_qwen3_*`: DFlash's layers and names, with its settings at the top
of `config.json`, and `markov_head.markov_w1`, `markov_w2`, `gate_proj` or `joint_proj`, and `confidence_head.proj`.
Slot k proposes token p + k + 1, that of the anchor included. `target_layer_ids` are layers whose outputs are read, and
-1 the embeddings: one less than the ids here. Embeddings and head are copies of the target's.
"""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.core.errors import SpeccError
from specc.core.layouts.base import Layout, Names, architecture, following, window
from specc.core.layouts.dflash import block, ignored, places


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    if architecture(source) != "Qwen3DSparkModel" and not {"markov_rank", "target_layer_ids"} <= source.keys():
        return "`architectures` is not `Qwen3DSparkModel`, and `config.json` has no `markov_rank` at the top"
    if names and not any(name.startswith("markov_head.") for name in names):
        return "there is no `markov_head.*`"
    return None


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft section's part that a folder decides."""
    if int(source["markov_rank"]) < 1:
        raise SpeccError("the source has no Markov head (`markov_rank` 0)",
                         hint="without it a DSpark draft has no place in the format")  # fmt: skip
    if verifier.get("embedding_scale", 1.0) != 1:
        raise SpeccError("the verifier's embedding layer multiplies, and the source has embeddings of its own",
                         hint="DSpark drafts for such verifiers are not in this release")  # fmt: skip
    confident = bool(source.get("enable_confidence_head"))
    return {
        "algorithm": "dspark",
        **block(source, verifier),
        "hidden_state_layers": following(source["target_layer_ids"], verifier),
        "sample_from_anchor": True,
        "sliding_window": window(source),
        "sliding_window_causal": False,
        "markov": {"type": str(source["markov_head_type"]).lower(), "rank": int(source["markov_rank"])},
        "confidence": {"with_markov": bool(source["confidence_head_with_markov"])} if confident else None,
    }


DSPARK = Layout(
    name="dspark",
    title="DSpark of DeepSeek",
    algorithm="dspark",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: draft["block_size"],
    places=places,
    ignored=ignored,
    filled={"t2d": "d2t"},
)
