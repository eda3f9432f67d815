"""What artifacts were made of, back to the verifier, as one graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from specc.core.contracts import Manifest
from specc.core.errors import SpeccError
from specc.core.store import Store
from specc.core.store.manifests import SHORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An artifact in a lineage; of one that is no longer in the store its digest is all that is known."""

    digest: str
    stage: str | None = None
    key: str | None = None
    size: int | None = None
    """Bytes of all files."""
    inputs: Mapping[str, str]
    """Digests by slot."""

    @property
    def short(self) -> str:
        """The digest as a person reads it."""
        return self.digest[:SHORT]


@dataclass(frozen=True, slots=True)
class Edge:
    """That `target` was made of `source`, which it has as its input `slot`."""

    source: Node
    target: Node
    slot: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Artifacts and all that they were made of: nodes by digest, each after its inputs, and the digests asked for."""

    nodes: Mapping[str, Node]
    shown: tuple[str, ...]

    def edges(self) -> Iterator[Edge]:
        """Yield what is made of what, in the order of the nodes."""
        for target in self.nodes.values():
            for slot, digest in target.inputs.items():
                yield Edge(self.nodes[digest], target, slot)


def trace(store: Store, shown: Sequence[Manifest], keys: Iterable[str] = ()) -> Lineage:
    """Return the lineage of artifacts; `keys` are those of the build at hand, as far as they are known.

    Equal bytes can come from different inputs. Which of them is meant here is known from `keys`; without
    them an ancestor is shown as it first came about.
    """
    known = {*keys, *(stage["key"] for item in shown for stage in item.params.get("stages", {}).values())}
    found: dict[str, Node] = {}
    entered = set[str]()

    def visit(digest: str, manifest: Manifest | None) -> None:
        if digest in entered:
            return
        entered.add(digest)
        if manifest is None:
            found[digest] = Node(digest=digest, inputs={})
            return
        for inner in manifest.inputs.values():
            visit(inner, _manifest(store, inner, known))
        found[digest] = Node(
            digest=digest, stage=manifest.stage, key=manifest.key, size=manifest.size, inputs=dict(manifest.inputs)
        )

    for item in shown:
        visit(item.digest, item)
    return Lineage(found, tuple(item.digest for item in shown))


def _manifest(store: Store, digest: str, keys: Iterable[str]) -> Manifest | None:
    """Return how an artifact came about in the build at hand, else how it first did; None if it is gone."""
    try:
        by_key = (found for key in keys if (found := store.manifest(digest, key)).key == key)
        return next(by_key, None) or store.manifest(digest)
    except SpeccError:
        return None
