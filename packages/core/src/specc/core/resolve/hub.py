"""A small client of the hub's HTTP interface: what a lock must know of a model, without its weights."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

from specc.core.errors import SpeccError
from specc.core.files import sha256

ENDPOINT: Final = "https://huggingface.co"
TIMEOUT: Final = 30.0
MAX_SMALL: Final = 64 << 20
"""Bytes of a file that is fetched to be read (configurations, tokenizers); weights are never fetched here."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model repository at one commit; sha256 of each file, None where only the git hash is known yet."""

    repo: str
    commit: str
    files: dict[str, str | None]


def model(repo: str, revision: str) -> HubModel:
    """Ask the hub which commit `revision` is and which files it holds; raises `SpeccError` in words."""
    quoted = urllib.parse.quote(revision, safe="")
    raw = _get(f"/api/models/{repo}/revision/{quoted}?blobs=true", repo, revision)
    try:
        info: dict[str, Any] = json.loads(raw)
        files = {item["rfilename"]: (item.get("lfs") or {}).get("sha256") for item in info["siblings"]}
        return HubModel(repo, info["sha"], files)
    except (ValueError, KeyError, TypeError) as error:
        raise SpeccError(f"the hub's answer about `{repo}` cannot be read") from error


def fetch(found: HubModel, name: str) -> bytes:
    """Return a small file's bytes at the model's commit, checked against the hub's sha256 where it states one."""
    data = _get(f"/{found.repo}/resolve/{found.commit}/{urllib.parse.quote(name)}", found.repo, found.commit)
    expected = found.files.get(name)
    if expected is not None and sha256(data) != expected:
        raise SpeccError(f"`{name}` of `{found.repo}` came with another sha256 than the hub states")
    return data


def pin(found: HubModel, names: list[str]) -> dict[str, str]:
    """Return the sha256 of each named file; those that the hub does not state are fetched and hashed."""
    return {name: found.files[name] or hashlib.sha256(fetch(found, name)).hexdigest() for name in names}


def offline() -> bool:
    """Tell whether the user wants no hub to be asked (`HF_HUB_OFFLINE`, as in huggingface_hub)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _get(path: str, repo: str, revision: str) -> bytes:
    if offline():
        raise SpeccError(
            f"`{repo}` is not pinned by a lock, and `--offline` (or `HF_HUB_OFFLINE`) forbids to ask the hub",
            hint="lock where there is a network: with a lock, planning needs none",
        )
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    request = urllib.request.Request(endpoint + path, headers={"User-Agent": "specc"})  # noqa: S310 - see below
    if request.type not in ("http", "https"):
        raise SpeccError("`HF_ENDPOINT` is not an http address")
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - the scheme was checked
            data = answer.read(MAX_SMALL + 1)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise SpeccError(
                f"the hub does not let us read `{repo}`",
                hint="accept the model's licence on its page and set `HF_TOKEN`",
            ) from error
        if error.code == 404:
            raise SpeccError(
                f"the hub has no model `{repo}` at revision `{revision}`", hint="check the spelling of both"
            ) from error
        raise SpeccError(f"the hub answered {error.code} for `{repo}`", hint="try again later") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SpeccError(
            f"the hub cannot be reached for `{repo}`: {reason}",
            hint="name a folder or a GGUF file in `verifier.model`, or lock where there is a network:"
            " with a lock, planning needs none",
        ) from error
    if len(data) > MAX_SMALL:
        raise SpeccError(f"a file of `{repo}` is too large to be a configuration or a tokenizer")
    return data
