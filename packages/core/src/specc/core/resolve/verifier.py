"""What a lock pins of a verifier, from its small files or its GGUF header; never from weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import sha256
from specc.core.language.rules import template_error
from specc.core.references import is_hub_id
from specc.core.resolve import hub, huggingface, sources

FACTS: Final = ("name", "format", "revision", "files", "tokenizer_sha256", "chat_template_sha256", "config")
"""What is read from a verifier, as keys of `verifier` beside those that a spec may write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """A verifier's pinned facts, as the tree `verifier` of the resolved spec, and where its files are.

    `files` is empty for a hub id (the stage downloads them) and for a verifier that is known from a lock only.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])


def find(
    section: Mapping[str, Any], base: Path, digest: Callable[[Path], str], pinned: Mapping[str, Any] | None
) -> Verifier:
    """Return the facts of the spec's verifier.

    `pinned` is the tree `verifier` of a lock. A hub id is taken from it as it is; a verifier on this machine is
    read again, since it is the user's own to change; one that is not on this machine is taken from the lock.
    """
    model, revision = section["model"], section["revision"]
    same = pinned is not None and pinned["model"] == model and (
        revision in (pinned.get("asked_revision"), pinned["revision"])
    )  # fmt: skip
    if is_hub_id(model) and not (base / model).exists():
        return Verifier(facts=_facts(pinned)) if same and pinned else _from_hub(model, revision or "main")
    located = sources.locate(model, base)
    if located is None:
        if same and pinned:
            return Verifier(facts=_facts(pinned))
        raise sources.absent(model)
    files = {name: digest(path) for name, path in located.files.items()}
    if same and pinned and pinned["files"] == files:
        return Verifier(facts=_facts(pinned), files=located.files)
    read = _gguf if located.kind == "gguf" else _folder
    facts = {"name": located.name, "format": located.kind, "revision": None, "files": files, **read(located)}
    return Verifier(facts=facts, files=located.files)


def _facts(pinned: Mapping[str, Any]) -> dict[str, Any]:
    return {key: pinned[key] for key in FACTS}


def _read(read: huggingface.Reader) -> dict[str, Any]:
    return {
        "config": huggingface.config_facts(read),
        "tokenizer_sha256": huggingface.tokenizer_digest(read),
        "chat_template_sha256": _template_digest(huggingface.chat_template(read)),
    }


def _template_digest(template: str) -> str:
    """Return the sha256 of a chat template; raises `SpeccError` for one that nothing could be trained with."""
    if (error := template_error(template)) is not None:
        raise error
    return sha256(template.encode())


def _folder(located: sources.Located) -> dict[str, Any]:
    def read(name: str) -> bytes | None:
        path = located.files.get(name)
        return None if path is None else path.read_bytes()

    return _read(read)


def _gguf(located: sources.Located) -> dict[str, Any]:
    from specc.core.resolve import gguf

    (path,) = located.files.values()
    header = gguf.read_header(path)
    template = gguf.chat_template(header)
    if template is None:
        raise SpeccError("the GGUF file carries no chat template", where=path.name, hint="use an instruct model's file")
    return {
        "config": gguf.verifier_config(header),
        "tokenizer_sha256": gguf.tokenizer_digest(header),
        "chat_template_sha256": _template_digest(template),
    }


def _from_hub(repo: str, revision: str) -> Verifier:
    found = hub.model(repo, revision)
    names = sources.hub_files(list(found.files))

    def read(name: str) -> bytes | None:
        return hub.fetch(found, name) if name in names else None

    facts = {"name": repo, "format": "huggingface", "revision": found.commit, "files": hub.pin(found, names)}
    return Verifier(facts={**facts, **_read(read)})
