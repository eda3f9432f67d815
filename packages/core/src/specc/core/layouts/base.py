"""What every source layout has to say of itself: how it is told, what it means, and where it keeps each tensor.

All of it is pure data and functions of a `config.json` and of names and shapes, so that the compiler can tell what a
folder is, and what is wrong with it, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specc.core.algorithms import ALGORITHMS, TensorSpec, algorithm
from specc.core.algorithms.base import Tree
from specc.core.errors import SpeccError
from specc.core.rotary import check_kind, rope_parameters

Names = Collection[str] | None
"""Names of a source's tensors; None where only its weights could tell."""
Check = Literal["zeros", "ones", "verifier", "folded"]
Fill = Literal["weights", "layer", "d2t", "folded"]
"""What a tensor that a source lacks is made of: the verifier's embeddings as they are, or as its embedding layer gives
them, which may multiply; the other half of the vocabulary's map; or what is folded into it of one that has no place."""


@dataclass(frozen=True, slots=True)
class Place:
    """A source's tensor, and the part of one of the format's that it holds.

    `shape` is the source's own. Of it, `take` are the rows that are meant (None: all); they go to the expert `expert`
    of the target, and there to the rows `put` (None: all of it).
    """

    name: str
    shape: tuple[int, ...]
    take: tuple[int, int] | None = None
    expert: int | None = None
    put: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Ignored:
    """Why a tensor of the source has no place in what is written; `check` is what it must be for that to hold.

    `zeros` and `ones` say it of every element, `verifier` that the tensor is the verifier's own of that name. One that
    is `folded` may be anything: it is a bias before the first layer, and what it adds is put where it arrives.
    """

    why: str
    check: Check | None = None


def same_name(spec: TensorSpec, draft: Tree, config: Tree) -> list[tuple[Place, ...]]:
    """Return that a source calls a tensor as the format does."""
    return [(Place(spec.name, spec.shape),)]


def as_configured(draft: Tree, names: Collection[str]) -> dict[str, Any]:
    """Return that a source's configuration says all that decides its tensors."""
    return dict(draft)


def nothing_ignored(name: str, draft: Tree, config: Tree) -> Ignored | None:
    """Return that every tensor of a source has a place."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A published layout of draft models, or a family of them.

    `mismatch(config, names)` says why a folder is not of it, None if it is. `draft(config, verifier)` returns the part
    of a resolved draft section that decides the tensors and what is computed with them, from the source's configuration
    and the verifier's; it raises `KeyError` for a key that is missing and `SpeccError` for a draft that cannot be said
    in the format. `places(tensor, draft, config)` are the ways in which a source may hold a tensor of the format, one
    of which must be there whole, unless the tensor is `filled` from elsewhere.
    `seen(draft, names)` returns what `draft` returned with what the tensors say beyond it; `names` are theirs, without
    biases that are known to be zeros.
    `ignored(name, draft, config)` tells what has no place in the format, and why. `config` is `decoder`: the
    verifier's configuration with the source's own heads, norms and positions. `tokens(config, draft)` is how many
    tokens are proposed at a time, None where a source does not say.
    """

    name: str
    title: str
    algorithm: str
    mismatch: Callable[[Tree, Names], str | None]
    draft: Callable[[Tree, Tree], dict[str, Any]]
    tokens: Callable[[Tree, Tree], int | None]
    seen: Callable[[Tree, Collection[str]], dict[str, Any]] = as_configured
    places: Callable[[TensorSpec, Tree, Tree], list[tuple[Place, ...]]] = same_name
    ignored: Callable[[str, Tree, Tree], Ignored | None] = nothing_ignored
    filled: Mapping[str, Fill] = field(default_factory=dict[str, Fill])
    own: bool = True
    """Whether the source says how its decoder turns and norms; else that is the verifier's."""
    table: Callable[[Tree, Tree], list[TensorSpec]] | None = None
    """The tensors of what is written, where no algorithm of ours has them."""

    @property
    def speculators(self) -> bool:
        """Whether what is written is in the speculators format."""
        return self.algorithm in ALGORITHMS

    def tensors(self, draft: Tree, config: Tree) -> list[TensorSpec]:
        """Return every tensor of what is written."""
        return self.table(draft, config) if self.table else algorithm(self.algorithm).layout(draft, config)


HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def decoder(row: Layout, source: Tree, verifier: Tree) -> dict[str, Any]:
    """Return the verifier's configuration with what the source's decoder has of its own.

    That is heads, the norms' epsilon, rotary embeddings and the longest context. Raises `SpeccError` if the source is
    not for a verifier of this width and vocabulary, or computes with something that no format has a word for, and
    `KeyError` for what is missing.
    """
    if not row.own:
        return dict(verifier)
    for key in ("hidden_size", "vocab_size"):
        if source[key] != verifier[key]:
            raise SpeccError(f"the source's `{key}` is {source[key]}, and the verifier's {verifier[key]}",
                             hint="convert it with the verifier that it was trained for")  # fmt: skip
    if source.get("target_hidden_size") not in (None, verifier["hidden_size"]):
        raise SpeccError(f"the source reads states of width {source['target_hidden_size']}, and the verifier's have"
                         f" {verifier['hidden_size']}",
                         hint="convert it with the verifier that it was trained for")  # fmt: skip
    require(source, "hidden_act", "silu")
    rope = rope_parameters(source)
    check_kind(rope)
    heads = int(source["num_attention_heads"])
    return {
        **verifier,
        "num_attention_heads": heads,
        "num_key_value_heads": int(source.get("num_key_value_heads") or heads),
        "head_dim": int(source.get("head_dim") or int(source["hidden_size"]) // heads),
        "rms_norm_eps": float(source["rms_norm_eps"]),
        "rope_parameters": rope,
        "max_position_embeddings": int(source["max_position_embeddings"]),
    }


def require(source: Tree, key: str, value: Any, *, inside: str | None = None) -> None:
    """Raise `SpeccError` if a source's key is there and is not `value`."""
    part: Tree = (source.get(inside) or {}) if inside else source
    if part.get(key) not in (None, value):
        raise SpeccError(
            f"the source's `config.json` sets `{f'{inside}.' if inside else ''}{key}` to {say(part[key])}, and only"
            f" {say(value)} has a place in the format",
            hint="a draft that computes otherwise would draft badly without a word",
        )


def say(value: Any) -> str:
    """Return a value of JSON in words."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def vocabulary(source: Tree) -> int:
    """Return the number of tokens that a source's head proposes from."""
    return int(source.get("draft_vocab_size") or source["vocab_size"])


def window(source: Tree, default: int | None = None) -> int | None:
    """Return the number of positions that all layers of a source see, None for all.

    Raises `SpeccError` for a decoder with layers of both kinds: the format's drafts have one.
    """
    kinds = set(source.get("layer_types") or ())
    if len(kinds) > 1:
        raise SpeccError(f"the source's layers are of several kinds, {', '.join(f'`{one}`' for one in sorted(kinds))}",
                         hint="in this release all layers of a draft have one window, or none")  # fmt: skip
    if kinds == {"sliding_attention"} or (not kinds and source.get("use_sliding_window")):
        return int(source["sliding_window"])
    return default


def same_vocabulary(name: str, draft: Tree, config: Tree) -> Ignored | None:
    """Return why the map of a draft that keeps the whole vocabulary has no place: it maps every token to itself."""
    if name in ("d2t", "t2d") and draft["vocabulary"] >= config["vocab_size"]:
        return Ignored("the draft keeps the whole vocabulary", "zeros" if name == "d2t" else "ones")
    return None


def following(layer_ids: Any, verifier: Tree) -> list[int]:
    """Return our ids of the states that come out of layers: those that go into the next one.

    Raises `SpeccError` for the last layer's: repositories take it after the verifier's final norm, vLLM before it.
    """
    ids = [int(one) + 1 for one in layer_ids]
    if ids and max(ids) >= verifier["num_hidden_layers"]:
        raise SpeccError(f"the source reads what comes out of layer {max(ids) - 1}, and the verifier's last one is"
                         f" {verifier['num_hidden_layers'] - 1}",
                         hint="vLLM gives a draft that state before the verifier's final norm, and it was trained on"
                         " the one after it")  # fmt: skip
    return ids


def architecture(source: Tree) -> str:
    """Return the first name in a configuration's `architectures`; empty if there is none."""
    names = source.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
