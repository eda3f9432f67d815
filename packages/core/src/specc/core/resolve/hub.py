"""A small client of the hub's HTTP interface: what a lock must know of a model or a data set, without its bulk."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, Final, Literal

from specc.core.errors import SpeccError
from specc.core.files import sha256

ENDPOINT: Final = "https://huggingface.co"
TIMEOUT: Final = 30.0
MAX_SMALL: Final = 64 << 20
"""Bytes of a file that is fetched to be read (configurations, tokenizers); weights are never fetched here."""


_INSTEAD: Final = {"model": "a folder or a GGUF file in `verifier.model`", "data set": "a `file` on this machine"}
_SMALL: Final = {"model": "a configuration or a tokenizer", "data set": "read for its sha256"}
Kind = Literal["model", "data set"]
_AT: Final = {"model": ("models", ""), "data set": ("datasets", "datasets/")}
"""Where the interface has the repositories of a kind, and what stands before their ids in addresses of files."""


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository at one commit; sha256 of each file, None where only the git hash is known yet."""

    repo: str
    commit: str
    files: dict[str, str | None]
    kind: Kind = "model"


def model(repo: str, revision: str) -> HubRepository:
    """Ask the hub which commit `revision` of a model is and which files it holds; raises `SpeccError` in words."""
    return _repository(repo, revision, "model")


def dataset(repo: str, revision: str) -> HubRepository:
    """Ask the same of a data set."""
    return _repository(repo, revision, "data set")


def _repository(repo: str, revision: str, kind: Kind) -> HubRepository:
    quoted = urllib.parse.quote(revision, safe="")
    raw = _get(f"/api/{_AT[kind][0]}/{repo}/revision/{quoted}?blobs=true", repo, revision, kind)
    try:
        info: dict[str, Any] = json.loads(raw)
        files = {item["rfilename"]: (item.get("lfs") or {}).get("sha256") for item in info["siblings"]}
        return HubRepository(repo, info["sha"], files, kind)
    except (ValueError, KeyError, TypeError) as error:
        raise SpeccError(f"the hub's answer about `{repo}` cannot be read") from error


def fetch(found: HubRepository, name: str) -> bytes:
    """Return a small file's bytes at the repository's commit, checked against the hub's sha256 where it states one."""
    place = f"/{_AT[found.kind][1]}{found.repo}/resolve/{found.commit}/{urllib.parse.quote(name)}"
    data = _get(place, found.repo, found.commit, found.kind)
    expected = found.files.get(name)
    if expected is not None and sha256(data) != expected:
        raise SpeccError(f"`{name}` of `{found.repo}` came with another sha256 than the hub states")
    return data


def pin(found: HubRepository, names: list[str]) -> dict[str, str]:
    """Return the sha256 of each named file; those that the hub does not state are fetched and hashed."""
    return {name: found.files[name] or hashlib.sha256(fetch(found, name)).hexdigest() for name in names}


def offline() -> bool:
    """Tell whether the user wants no hub to be asked (`HF_HUB_OFFLINE`, as in huggingface_hub)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _get(path: str, repo: str, revision: str, kind: Kind) -> bytes:
    if offline():
        raise SpeccError(
            f"`{repo}` is not pinned by a lock, and `--offline` (or `HF_HUB_OFFLINE`) forbids to ask the hub",
            hint="lock where there is a network: with a lock, planning needs none",
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise SpeccError("`HF_ENDPOINT` is not an http address", hint=f"remove it from the environment for {ENDPOINT}")
    request = urllib.request.Request(endpoint + path, headers={"User-Agent": "specc"})  # noqa: S310 - see above
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - as above
            data = answer.read(MAX_SMALL + 1)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise SpeccError(
                f"the hub does not let us read `{repo}`",
                hint=f"accept the {kind}'s licence on its page and set `HF_TOKEN`",
            ) from error
        if error.code == 404:
            raise SpeccError(
                f"the hub has no {kind} `{repo}` at revision `{revision}`", hint="check the spelling of both"
            ) from error
        raise SpeccError(f"the hub answered {error.code} for `{repo}`", hint="try again later") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SpeccError(
            f"the hub cannot be reached for `{repo}`: {reason}",
            hint=f"name {_INSTEAD[kind]}, or lock where there is a network: with a lock, planning needs none",
        ) from error
    if len(data) > MAX_SMALL:
        raise SpeccError(f"a file of `{repo}` is too large to be {_SMALL[kind]}")
    return data
