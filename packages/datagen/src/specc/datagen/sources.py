"""The files of a source: on this disk, on a hub or at an address, each one checked before it is read."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from specc.core.datafiles import files_of, label
from specc.core.errors import Exit, SpeccError
from specc.core.fetch import WAIT, download
from specc.core.files import CHUNK, sha256, sha256_file
from specc.core.stage import Stage

TRIES: Final = 5
"""Times that a download which breaks off is continued before it is given up."""
INSTEAD: Final = "download it and name it as a `file`"
TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of rows as a stage reads it.

    `files` have their sha256 by their names, in the order in which they are read. `dataset` and `commit` are of a data
    set on a hub, `url` of a file at an address; otherwise the files are on this disk. `share` of the rows is for
    validation. `images` are the files, with their sha256, in the `folder` that images' paths are relative to.
    """

    name: str
    files: Mapping[str, str]
    rows: int | None
    share: float
    weight: float | None = None
    columns: Mapping[str, str] | None = None
    dataset: str | None = None
    commit: str | None = None
    url: str | None = None
    folder: str | None = None
    images: Mapping[str, str] = field(default_factory=dict[str, str])

    def called(self, file: str) -> str:
        """Return what a file is called in rows and messages; that of a data set has the id before it."""
        return f"{self.dataset}/{file}" if self.dataset else file

    def format_name(self, file: str) -> str:
        """Return the name whose suffix says how a file is read."""
        return urlsplit(file).path if self.url else file


def sources_of(stage: Stage) -> list[Source]:
    """Return the sources of a job: those for validation first, in the order of the spec."""
    data = stage.params["data"]
    validation = data["validation"]
    items: list[Mapping[str, Any]] = [*data["sources"], *validation["sources"]]
    commits = stage.job.context.get("hub", {}).get("commits", [None] * len(items))
    shares = [validation["share"] or 0.0] * len(data["sources"]) + [1.0] * len(validation["sources"])
    found = [
        Source(name=label(item), files=files_of(item), rows=item.get("rows"), share=share, weight=item.get("weight"),
               columns=item.get("columns"), dataset=item.get("dataset"), commit=commit, url=item.get("url"),
               folder=item.get("images"), images=item.get("image_files", {}))
        for item, share, commit in zip(items, shares, commits, strict=True)
    ]  # fmt: skip
    cut = len(data["sources"])
    return [*found[cut:], *found[:cut]]


@contextmanager
def opened(stage: Stage, source: Source, file: str) -> Generator[Path]:
    """Give the path of a file of a source, which has the sha256 of the lock; what was fetched for it goes away after.

    Raises `SpeccError` if the file is another one, or if it cannot be fetched.
    """
    away = source.dataset is not None or source.url is not None
    path = (
        stage.file(file) if not away else _from_hub(stage, source, file) if source.dataset else _from_url(stage, file)
    )
    if sha256_file(path) != source.files[file]:
        if away:
            path.unlink()
        option = "--upgrade data " if away else ""
        raise SpeccError(
            f"`{source.called(file)}` is not the file that the lock names",
            hint=f"`specc lock {option}SPEC` pins it as it is now",
            code=Exit.STAGE,
        )
    try:
        yield path
    finally:
        if away:
            path.unlink(missing_ok=True)


def _from_hub(stage: Stage, source: Source, file: str) -> Path:
    """Fetch a file at the pinned commit into the work folder; what a killed download left there is continued."""
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise SpeccError(f"`{file}` is not the path of a file in a data set", code=Exit.STAGE)
    return download(source.dataset or "", file, source.commit or "", _place(stage, f"{source.dataset}@{source.commit}"),
                    kind="dataset", called=f"`{source.called(file)}`", instead=INSTEAD, tries=TRIES)  # fmt: skip


def _from_url(stage: Stage, url: str) -> Path:
    """Fetch the file at an address into the work folder, going on where a broken download stopped."""
    target = _place(stage, url) / "download"
    target.unlink(missing_ok=True)
    error: Exception = OSError("it breaks off")
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            if _continued(url, target):
                return target
        except (OSError, http.client.HTTPException) as broken:
            error = broken
            if isinstance(broken, urllib.error.HTTPError) and broken.code < 500:
                break
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    raise SpeccError(f"`{url}` cannot be fetched: {first[:200]}", hint=f"check the network, or {INSTEAD}",
                     code=Exit.STAGE) from error  # fmt: skip


def _place(stage: Stage, name: str) -> Path:
    """Return the folder in which the files of a source are for as long as they are read: in a mix, several at once."""
    folder = stage.work / "hub" / sha256(name.encode())[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _continued(url: str, target: Path) -> bool:
    """Fetch what of a file is not there yet; return whether it is whole now."""
    there = target.stat().st_size if target.exists() else 0
    headers = {"User-Agent": "specc", **({"Range": f"bytes={there}-"} if there else {})}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the language takes http alone
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - as above
        length = answer.headers.get("Content-Length")
        goes_on = answer.status == http.client.PARTIAL_CONTENT
        with target.open("ab" if goes_on else "wb") as file:
            start = file.tell()
            while chunk := answer.read(CHUNK):
                file.write(chunk)
            return length is None or file.tell() - start == int(length)
