"""The head for further tokens that a verifier has of its own, and such a head as it was trained.

`mtp` takes it out of a verifier: Qwen3-Next's and Qwen3.5's `mtp.*` and MiMo's `model.mtp_layers.0.*`. Names and
shapes are those of `specc.core.algorithms.mtp`, which are vLLM 0.32's (`qwen3_next_mtp.py`, `qwen3_5_mtp.py`,
`mimo_mtp.py`) and, of the format, those of the converter `mtp` in vllm-project/speculators. `speculators` is a head in
the speculators format, ours or that library's, which `--stitch` puts back into its verifier.
"""

from __future__ import annotations

from typing import Any, Final

from specc.core.algorithms import TensorSpec
from specc.core.algorithms.base import Tree
from specc.core.algorithms.mtp import HEADS, head_of, pieces
from specc.core.layouts.base import Ignored, Layout, Names, Place

TOKENS: Final = 3
KEYS: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
ROOTS: Final = tuple(sorted({head.place.removesuffix("layers.0.") if head.names else head.place
                             for head in HEADS.values()}))  # fmt: skip


def _text(source: Tree) -> Tree:
    """Return the part for text of a configuration."""
    return source.get("text_config") or source


def mismatch(source: Tree, names: Names) -> str | None:
    """Say why a folder is not a verifier with such a head."""
    family = str(_text(source).get("model_type"))
    if family not in HEADS:
        return f"`model_type` is `{family}`, and heads of {', '.join(f'`{one}`' for one in sorted(HEADS))} are known"
    if not any(_text(source).get(key) for key in KEYS):
        return f"`config.json` promises no such head ({', '.join(f'`{key}`' for key in KEYS)})"
    if names and not any(name.startswith(ROOTS) for name in names):
        return f"there is no {' and no '.join(f'`{root}*`' for root in ROOTS)}"
    return None


def places(spec: TensorSpec, draft: Tree, config: Tree) -> list[tuple[Place, ...]]:
    """Return how a verifier may hold a tensor: as the format does, or experts apart."""
    apart = pieces(config, ())[spec.name]
    head = head_of(config)
    whole = pieces(config, (head.place + spec.name.removeprefix("mtp_layers.0."),))[spec.name] if len(apart) > 1 else []
    ways = [whole, apart] if whole else [apart]
    return [tuple(Place(one.name, one.shape, expert=one.expert, put=one.rows) for one in way) for way in ways]


def ignored(name: str, draft: Tree, config: Tree) -> Ignored | None:
    """Return why all else of a verifier has no place."""
    return None if name.startswith(ROOTS) else Ignored("of the verifier's body, not of its head")


def draft(source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the draft section's part that a folder decides: the verifier alone does."""
    head_of(verifier)
    return {"algorithm": "mtp"}


def in_format(source: Tree, names: Names) -> str | None:
    """Say why a folder is not such a head in the speculators format."""
    kind = source.get("speculators_model_type")
    if kind is None:
        return "`config.json` is not in the speculators format"
    if kind != "mtp":
        return f"a speculator of the type `{kind}` is in the format already: vLLM serves it, `draft.init.from` takes it"
    return None


MTP = Layout(
    name="mtp",
    title="the MTP head of a verifier",
    algorithm="mtp",
    mismatch=mismatch,
    draft=draft,
    tokens=lambda source, draft: TOKENS,
    places=places,
    ignored=ignored,
    own=False,
)
SPECULATORS = Layout(
    name="speculators",
    title="an MTP head in the speculators format",
    algorithm="mtp",
    mismatch=in_format,
    draft=draft,
    tokens=lambda source, draft: TOKENS,
    own=False,
)
