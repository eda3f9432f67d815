"""The model card: `README.md` of a checkpoint, from resolved values alone."""

from __future__ import annotations

import json
import shlex
from importlib import resources
from typing import Any

import jinja2

from specc.core.algorithms import algorithm
from specc.core.algorithms.base import Tree
from specc.export.formats import speculator_format
from specc.export.provenance import materials, portable


def card(params: Tree) -> str:
    """Return the card in Markdown with a YAML head, as model hubs read it.

    It states no evaluation and no date: both belong to a run, not to the checkpoint.
    """
    row = algorithm(params["draft"]["algorithm"])
    return rendered(
        "specc.export",
        **portable({key: params[key] for key in ("name", "verifier", "draft", "data", "train", "export")}),
        title=row.title,
        stitched=row.stitched,
        devices=list(row.vllm(params["draft"])),
        rows=speculator_format(params["draft"]["algorithm"]).rows(params["draft"]),
        materials=materials(params),
        commands=commands(params),
    )


def rendered(package: str, **values: Any) -> str:
    """Return the card that a package's template makes of values; one that it names and is not given is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, not HTML
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = resources.files(package).joinpath("card.md.jinja").read_text("utf-8")
    return environment.from_string(text).render(**values)


def commands(params: Tree) -> dict[str, str]:
    """Return the ways to serve the checkpoint with vLLM: by its own name, with both paths, or inside its verifier."""
    serving = algorithm(params["draft"]["algorithm"]).serving
    tokens = {"num_speculative_tokens": params["export"]["speculative_tokens"]}
    speculative = {**serving, "model": "./" + params["name"], **tokens}
    revision = params["verifier"]["revision"]
    pinned = f" --revision {shlex.quote(revision)}" if revision else ""
    return {
        "both": f"vllm serve VERIFIER{pinned} --speculative-config {shlex.quote(json.dumps(speculative))}",
        "own": f"vllm serve ./{params['name']}",
        "inside": shlex.quote(json.dumps({**serving, **tokens})),
    }
