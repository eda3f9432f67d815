"""Rotary embeddings of a `config.json`, in the one form that transformers 5 gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from specc.core.errors import SpeccError

KINDS: Final = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Kinds of rotary embeddings that transformers knows of a Llama."""


def rope_parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary parameters from either form: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    Of layers with a window and layers without one, they are the latter's. A base that is not there is 10000.
    """
    rope = text.get("rope_parameters") or {}
    if rope and all(isinstance(one, Mapping) for one in rope.values()):
        rope = rope["full_attention"]
    if rope:
        found: dict[str, Any] = {"rope_type": "default", **rope}
        if "rope_theta" not in found and "rope_theta" in text:
            found["rope_theta"] = float(text["rope_theta"])
        return found
    scaling = dict(text.get("rope_scaling") or {})
    kind = scaling.pop("type", None) or scaling.pop("rope_type", None) or "default"
    scaling.pop("rope_type", None)
    return {"rope_type": kind, "rope_theta": float(text.get("rope_theta") or 10000.0), **scaling}


def check_kind(parameters: Mapping[str, Any]) -> None:
    """Raise `SpeccError` for a kind of rotary embeddings that transformers does not know."""
    if parameters["rope_type"] not in KINDS:
        known = ", ".join(f"`{kind}`" for kind in KINDS)
        raise SpeccError(
            f"rotary embeddings of type `{parameters['rope_type']}` are not known", hint=f"these are: {known}"
        )
