"""What a conversion says of itself: its configuration, its card, `specc.json` and its provenance."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any, Final

from specc.core.algorithms import algorithm, decoder_config
from specc.core.algorithms.base import Tree
from specc.core.files import FileEntry
from specc.core.layouts import Assignment, Layout
from specc.export.card import rendered
from specc.export.config import speculator_config
from specc.export.provenance import portable, statement

SHARED: Final = ("embed_tokens.weight", "lm_head.weight")


def config_json(row: Layout, params: Tree) -> dict[str, Any]:
    """Return `config.json`: in the speculators format, or as vLLM reads a layout which that has no word for.

    `decoder` of `params` is the verifier's configuration with the source's own heads, norms and positions.
    """
    draft, decoder = params["draft"], params["decoder"]
    if row.speculators:
        return speculator_config({**params, "verifier": {**params["verifier"], "config": decoder}})
    plain = decoder_config({**draft, "decoder": "llama", "sliding_window": None}, decoder)
    del plain["layer_types"]  # vLLM counts the draft's layers on from the verifier's, and would look behind the list
    if biases := draft.get("biases"):  # vLLM goes by `qkv_bias`, and by the other one for the output's alone
        plain |= {"attention_bias": "o" in biases, "qkv_bias": True}
    return {**plain, "dtype": params["export"]["dtype"]}


def own(found: Assignment) -> list[str]:
    """Return which tensors are the draft's own that drafts of ours take from the verifier."""
    return sorted(spec.name for spec in found.taken if spec.name in SHARED)


def specc_json(params: Tree) -> dict[str, Any]:
    """Return `specc.json`: the values of the conversion, its ancestors' keys and input digests."""
    kept = {key: params[key] for key in ("source", "verifier", "draft", "export")}
    differs = {key: value for key, value in params["decoder"].items() if params["verifier"]["config"].get(key) != value}
    return {
        "specc": 1,
        "name": params["source"]["name"],
        "resolved": portable({**kept, "decoder": differs}),
        "stages": params["stages"],
    }


def materials(params: Tree) -> list[dict[str, Any]]:
    """Return every file from outside, sorted by name."""
    found = {
        f"{kind}/{name}": digest for kind in ("source", "verifier") for name, digest in params[kind]["files"].items()
    }
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(found.items())]


def provenance_json(params: Tree, files: Iterable[FileEntry]) -> dict[str, Any]:
    """Return the statement over a conversion: its materials are the source's files and the verifier's."""
    return statement("urn:specc:converted:1", params["source"]["name"], params["stages"], materials(params), files)


def card(row: Layout, params: Tree, found: Tree) -> str:
    """Return the card in Markdown with a YAML head: what it was converted from, and that nothing was trained."""
    name = params["source"]["name"].rpartition("/")[2]
    serving = algorithm(row.algorithm).serving if row.speculators else {"method": row.algorithm}
    command = {**serving, "model": f"./{name}", "num_speculative_tokens": params["export"]["speculative_tokens"]}
    revision = params["verifier"]["revision"]
    pinned = f" --revision {shlex.quote(revision)}" if revision else ""
    return rendered(
        "specc.export.convert",
        **portable({key: params[key] for key in ("source", "verifier", "draft", "decoder", "export")}),
        name=name,
        title=algorithm(row.algorithm).title if row.speculators else row.title,
        layout=row,
        stitched=row.speculators and algorithm(row.algorithm).stitched,
        devices=list(algorithm(row.algorithm).vllm(params["draft"])) if row.speculators else ["cpu", "cuda"],
        found=found,
        materials=[item for item in materials(params) if item["name"].startswith("source/")],
        command=f"vllm serve VERIFIER{pinned} --speculative-config {shlex.quote(json.dumps(command))}",
    )
