"""P-EAGLE as AWS publishes it and SpecForge trains it.

From `examples/models/gpt_oss/peagle` of aws-neuron/nkipy, which runs `amazon/GPT-OSS-20B-P-EAGLE`
(`tensor_preparation.py` for names, `config.py` for `ptd_token_id` and the rest, `kernels/` for what is computed), from
`specforge/modeling/draft/peagle.py` of sgl-project/SpecForge, and from vLLM 0.32, which serves both as
`LlamaForCausalLMEagle3` with `parallel_drafting`: EAGLE-3's first layer, `midlayer.*` or `layers.0.*`, plain ones
behind it, `layers.1.*` and on, and a state `mask_hidden` before `fc`, of 3 hidden sizes, for tokens that are not known
yet; the embedding beside it is that of the token `mask_token_id`, `pard_token` or `ptd_token_id`. Both maps of a
whole vocabulary are written, too, and the embeddings, which are learnt here. How many tokens it was trained to
propose stands nowhere in the folder.
"""

from __future__ import annotations

from typing import Any

from specc.core.algorithms.base import Tree
from specc.core.layouts.base import Layout, Names, require, same_vocabulary
from specc.core.layouts.eagle3 import fused, marks, other, parallel, places


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not of this layout."""
    if other(source) or not (marks(source) or parallel(source)):
        return "`config.json` is not one of an EAGLE-3 draft (`architectures`, `draft_vocab_size`)"
    if not parallel(source):
        return "`config.json` names no mask token (`mask_token_id`, `pard_token`, `ptd_token_id`)"
    if names and "mask_hidden" not in names:
        return "there is no `mask_hidden`"
    return None


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft section's part that a folder decides; of several mask tokens vLLM takes the first of these."""
    for key in ("fc_norm", "norm_output", "norm_before_fc"):
        require(source, key, False)
    keys = ("mask_token_id", "pard_token", "ptd_token_id")
    token = next((source[key] for key in keys if source.get(key) is not None), None)
    if token is None:
        raise KeyError("mask_token_id")
    return {"algorithm": "peagle", **fused(source, verifier), "mask_token": int(token)}


PEAGLE = Layout(
    name="peagle",
    title="P-EAGLE of AWS or SpecForge",
    algorithm="peagle",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: None,
    places=places,
    ignored=same_vocabulary,
    filled={"embed_tokens.weight": "weights", "t2d": "d2t"},
)
