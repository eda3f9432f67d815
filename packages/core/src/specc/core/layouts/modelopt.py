"""EAGLE-3 as NVIDIA's Model Optimizer exports it.

From `modelopt/torch/export/plugins/hf_spec_export.py` (`EagleExporter`, names and what must be there) and its template
of `config.json`, and from `modelopt/torch/speculative/plugins/transformers.py` (`EagleModule`, what is computed): the
layers are `layers.N.*`, the first of which has `hidden_norm`; `d2t` are offsets, there is no `t2d`, and the head is the
base model's where the draft has none of its own. `eagle_aux_hidden_state_layer_ids` are layers whose outputs are read,
collected by forward hooks: one less than the ids here. An empty list is the default, the states that go into layers 2,
n/2 and n-3. The exporter writes EAGLE-1 (`use_aux_hidden_state` false) and parallel heads in the same file, too; they
have no place here.
"""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.core.layouts.base import Layout, Names, require, same_vocabulary
from specc.core.layouts.eagle3 import NATIVE, STEPS, fused, parallel


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    if NATIVE not in (source.get("eagle_config") or {}):
        return f"`config.json` has no `eagle_config.{NATIVE}`"
    if parallel(source):
        return "it has a mask token: it drafts in one pass"
    return None


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft section's part that a folder decides."""
    wanted = {"use_input_layernorm_in_first_layer": True, "use_last_layernorm": True, "use_mtp_layernorm": False,
              "next_layer_regular": True}  # fmt: skip
    for key, value in wanted.items():
        require(source, key, value, inside="eagle_config")
    require(source, "parallel_draft_step", 1, inside="eagle_config")
    return {"algorithm": "eagle3", **fused(source, verifier), "fc_norm": False, "norm_output": False}


MODELOPT = Layout(
    name="modelopt",
    title="EAGLE-3 of NVIDIA's Model Optimizer",
    algorithm="eagle3",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: STEPS,
    ignored=same_vocabulary,
    filled={"embed_tokens.weight": "layer", "t2d": "d2t"},
)
