"""`config.json` of a speculator, and what a card and a provenance say of the same values."""

from __future__ import annotations

from typing import Any, Final

from specc.core.algorithms import algorithm
from specc.core.algorithms.base import Tree
from specc.export.formats import speculator_format

SPECULATORS_VERSION: Final = "0.9.0"
"""The release of the speculators library whose format this is."""


def speculator_config(params: Tree) -> dict[str, Any]:
    """Return `config.json` for resolved values (`draft`, `verifier`, `export`).

    `verifier.name_or_path` is a hub id or a logical name, never a path: whoever serves it gives vLLM both
    paths. There is no top-level `model_type`, which would make vLLM take it for a plain model.
    """
    draft, verifier, export = params["draft"], params["verifier"], params["export"]
    kind, row = speculator_format(draft["algorithm"]), algorithm(draft["algorithm"])
    return {
        "architectures": [kind.architecture],
        "auto_map": {"": f"config.{kind.config_class}"},
        "dtype": export["dtype"],
        "speculators_config": {
            "algorithm": kind.algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "accept_tolerance": 0.0,
                    "proposal_type": "greedy",
                    "speculative_tokens": export["speculative_tokens"],
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {
                "architectures": [verifier["config"]["architecture"]],
                "name_or_path": verifier["name"],
            },
        },
        "speculators_model_type": kind.algorithm,
        "speculators_version": SPECULATORS_VERSION,
        "tie_word_embeddings": False,
        "transformer_layer_config": row.decoder(draft, verifier["config"]),
        **row.fields(draft),
    }
