"""A store's index without a store, for tests of what a plan decides."""

from __future__ import annotations

from collections.abc import Mapping

from specc.core.contracts import Manifest
from specc.core.files import digest_of
from specc.core.plan import Plan, decide

ALL = ["verifier", "conversations", "responses", "tokens", "vocabulary", "hidden_states", "draft", "checkpoint",
       "evaluation"]  # fmt: skip
"""The stages of `values.VALUES`."""


class Shelf:
    """An index in memory, with the three questions that a decision asks of a store."""

    def __init__(self) -> None:
        self.index: dict[tuple[str, str], str] = {}
        self.manifests: dict[str, Manifest] = {}
        self.lasts: dict[tuple[str, str], str] = {}

    def find(self, stage: str, key: str) -> str | None:
        return self.index.get((stage, key))

    def manifest(self, digest: str) -> Manifest:
        return self.manifests[digest]

    def last(self, name: str, stage: str) -> Manifest | None:
        digest = self.lasts.get((name, stage))
        return None if digest is None else self.manifests[digest]

    def build(self, plan: Plan, content: Mapping[str, str] | None = None) -> list[str]:
        """Pretend to build: an artifact's bytes are a function of its key, or what `content` says."""
        built: list[str] = []
        while (todo := next((item for item in decide(plan, self) if item.due), None)) is not None:
            assert todo.key is not None
            stage, decisions = todo.stage, {item.stage.name: item for item in decide(plan, self)}
            digest = digest_of((content or {}).get(stage.name, todo.key))
            self.index[stage.name, todo.key] = digest
            self.manifests[digest] = Manifest(
                digest=digest, tensors=None, stage=stage.name, version=stage.row.version, key=todo.key,
                params=stage.params({}), facets=stage.facets,
                inputs={slot: decisions[source].digest or "" for slot, source in stage.row.inputs.items()
                        if decisions[source].digest},
                keys={slot: decisions[source].key or "" for slot, source in stage.row.inputs.items()
                      if source in stage.row.by_key}, files=(),
            )  # fmt: skip
            built.append(stage.name)
        for item in decide(plan, self):
            if item.digest:
                self.lasts[plan.name, item.stage.name] = item.digest
        return built
