"""What a lock pins of the data: the sha256 of every file, and where a hub's files were found."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from specc.core.datafiles import (
    FROM,
    KNOWN,
    Item,
    image_places,
    is_pattern,
    items_of,
    label,
    local_files,
    local_images,
    local_places,
)
from specc.core.errors import SpeccError
from specc.core.files import CHUNK
from specc.core.images import SUFFIXES
from specc.core.language import Document
from specc.core.language.text import printable
from specc.core.presets import PRESETS
from specc.core.references import placed
from specc.core.resolve import hub
from specc.core.resolve.datasets import SPLIT, examples_of_split, files_of_split

PINS: Final = ("commit", "files", "sha256", "split", "examples")
"""What a lock adds to a source outside; to a preset also what its name stands for."""
STANDS_FOR: Final = ("dataset", "config", "columns", "licence")
_PINNED_BY: Final = {"dataset": "commit of the data set", "preset": "commit of the preset", "url": "sha256 of"}

Digest = Callable[[Path], str]


def pin_data(
    tree: Mapping[str, Any], base: Path, digest: Digest, known: list[Item], document: Document
) -> dict[str, Path]:
    """Put beside every source of a tree of values what pins it; return where the files are that are here.

    `known` are the sources of a lock, to which those are added that are pinned: what is not on this disk is taken from
    it, and a hub or a server is asked for nothing that it has. Raises `SpeccError` at a source whose files are nowhere.
    """
    found: dict[str, Path] = {}
    for path, item in items_of(tree):
        key = _key(item)
        try:
            found |= _pin_local(item, base, digest, known) if "file" in item else _pin_remote(item, known)
            if "images" in item:
                key = "images"
                found |= _pin_images(item, base, digest, known)
        except SpeccError as error:
            raise document.error(error.message, (*path, key), hint=error.hint, id=error.id) from error
        known.append(item)
    return found


def unpinned_data(values: Mapping[str, Any], pinned: Mapping[str, Any], document: Document) -> list[SpeccError]:
    """Return an error for each source outside that a spec asks for and a lock does not pin."""
    known = {_asked(item) for _, item in items_of(pinned)}
    return [
        document.error(f"the lock pins no {_PINNED_BY[_key(item)]} `{printable(label(item))}`", (*path, _key(item)),
                       id="E0311", note="`--locked` was given", hint=f"`specc lock {document.name}` pins it")
        for path, item in items_of(values)
        if "file" not in item and _asked(item) not in known
    ]  # fmt: skip


def places_of(values: Mapping[str, Any], base: Path) -> dict[str, Path]:
    """Return where the files of locked values are on this machine, whether they are there or not."""
    return {name: placed(name, base) for _, item in items_of(values)
            for name in (*local_files(item), *local_images(item))}  # fmt: skip


def _pin_local(item: dict[str, Any], base: Path, digest: Digest, known: Iterable[Item]) -> dict[str, Path]:
    name = item["file"]
    if places := local_places(name, base):
        hashes = {one: digest(place) for one, place in places.items()}
        item.update(_pins(hashes, name))
        return places
    for other in known:
        if other.get("file") == name:
            item.update({key: other[key] for key in ("sha256", "files") if key in other})
            return {}
    if placed(name, base).is_dir():
        raise SpeccError(f"the folder `{name}` has no file of a format that is read", hint=f"read are {KNOWN}")
    what = "file that fits" if is_pattern(name) else "file"
    raise SpeccError(f"there is no {what} `{name}`", hint="paths are relative to the spec")


def _pin_images(item: dict[str, Any], base: Path, digest: Digest, known: Iterable[Item]) -> dict[str, Path]:
    """Add to a source the sha256 of every image in its folder of them; return where they are."""
    if places := image_places(item["images"], base):
        item["image_files"] = {name: digest(place) for name, place in places.items()}
        return places
    for other in known:
        if other.get("images") == item["images"] and "image_files" in other:
            item["image_files"] = other["image_files"]
            return {}
    raise SpeccError(f"the folder `{printable(item['images'])}` has no image",
                     hint=f"images are {', '.join(f'`{suffix}`' for suffix in SUFFIXES)}")  # fmt: skip


def _pin_remote(item: dict[str, Any], known: Iterable[Item]) -> dict[str, Path]:
    """Add to a source what a lock, or else the hub or the server, says of it, and what a preset stands for."""
    added = (*PINS, *STANDS_FOR) if "preset" in item else PINS
    for other in known:
        if "file" not in other and _asked(item) == _asked(other):
            item.update({key: other[key] for key in added if key in other})
            return {}
    if "preset" in item:
        item.update(PRESETS[item["preset"]].values())
    if "url" in item:
        item["sha256"] = _hash_of(item["url"])
        return {}
    if "path" not in item:
        item.setdefault("split", SPLIT)
    found = hub.dataset(item["dataset"], item.get("revision") or "main")
    hashes = hub.pin(found, files_of_split(found, item))
    item["commit"] = found.commit
    item.update(_pins(hashes, item.get("path")))
    if (examples := examples_of_split(found, item)) is not None:
        item["examples"] = examples
    return {}


def _pins(hashes: dict[str, str], name: str | None) -> dict[str, Any]:
    """Return what pins files: one that the spec itself names has its sha256, of others each has its own."""
    return {"sha256": hashes[name]} if name is not None and list(hashes) == [name] else {"files": hashes}


def _asked(item: Item) -> tuple[str | None, ...]:
    """Return what a spec asks for outside: two sources that ask for the same have the same pins."""
    if "preset" in item:
        return "preset", item["preset"], item.get("revision")
    split = None if "path" in item else item.get("split", SPLIT)
    return *(item.get(key) for key in ("dataset", "config", "path", "url", "revision")), split


def _key(item: Item) -> str:
    """Return the key that says where a source is."""
    return next(key for key in FROM if key in item)


def _hash_of(url: str) -> str:
    """Return the sha256 of what is at an address, of which no more than a part is ever in memory."""
    hint = "lock where there is a network: with a lock, planning needs none"
    if hub.offline():
        raise SpeccError(
            f"`{url}` is not pinned by a lock, and `--offline` (or `HF_HUB_OFFLINE`) forbids to ask for it", hint=hint
        )
    state = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "specc"})  # noqa: S310 - the language takes http alone
    try:
        with urllib.request.urlopen(request, timeout=hub.TIMEOUT) as answer:  # noqa: S310 - as above
            length = answer.headers.get("Content-Length")
            count = 0
            while chunk := answer.read(CHUNK):
                state.update(chunk)
                count += len(chunk)
    except urllib.error.HTTPError as error:
        raise SpeccError(f"the server answered {error.code} for `{url}`", hint="check the address") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise SpeccError(f"`{url}` cannot be fetched: {reason}", hint=hint) from error
    if length is not None and count != int(length):
        raise SpeccError(f"`{url}` was cut off after {count} of {length} bytes", hint="try again")
    return state.hexdigest()
