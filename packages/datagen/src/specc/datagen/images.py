"""The images of conversations: seen where rows name them, and kept once each, by the sha256 of their bytes."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specc.core.errors import Exit, SpeccError
from specc.core.files import sha256
from specc.core.images import ADDRESS, Image, ImageError, from_url, look
from specc.core.stage import Stage
from specc.datagen.media import See, refuse
from specc.datagen.rows import Message
from specc.datagen.sources import Source
from specc.datagen.tools import ShapeError, kind


def image_file(folder: Path, digest: str) -> Path:
    """Return where an image is in an artifact of conversations."""
    return folder / "images" / digest[:2] / digest


class Gallery:
    """The images that a stage reads. Memory holds those of one row, and some 300 bytes for each that was seen."""

    def __init__(self, stage: Stage, *, taken: bool) -> None:
        """See images of a stage's sources; where the verifier takes none (not `taken`), each is refused."""
        self._stage = stage
        self._taken = taken
        self._seen: dict[str, Image] = {}
        self._waiting: dict[str, bytes] = {}
        self.files, self.bytes = 0, 0
        """What was kept: images, and their bytes."""

    def reader(self, source: Source) -> See:
        """Return what sees the images of a source's rows."""

        def see(value: object) -> Image:
            data = self._read(value, source)
            try:
                image = look(data)
            except ImageError as error:
                raise ShapeError(f"an image {error}") from error
            image = self._seen.setdefault(image["sha256"], image)
            self._waiting[image["sha256"]] = data
            return image

        return see if self._taken else refuse

    def forget(self) -> None:
        """Let go of the images of the last row."""
        self._waiting.clear()

    def keep(self, messages: Iterable[Message]) -> None:
        """Write the images of the last row's messages into the artifact, each once."""
        for image in (image for message in messages for image in message.get("images", ())):
            path = image_file(self._stage.output, image["sha256"])
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._waiting[image["sha256"]])
                self.files, self.bytes = self.files + 1, self.bytes + path.stat().st_size

    def _read(self, value: object, source: Source) -> bytes:
        fields: dict[str, Any] = value if isinstance(value, dict) else {}
        if fields:
            value = next((fields[key] for key in ("bytes", "path", "url") if fields.get(key) is not None), None)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise ShapeError(f"an image is {kind(value)}, and no path, no `data:` URL and no bytes")
        if value.startswith(("data:", *ADDRESS)):
            try:
                return from_url(value)
            except ImageError as error:
                raise ShapeError(f"an image {error}") from error
        return self._file(value, source)

    def _file(self, path: str, source: Source) -> bytes:
        """Return the bytes of an image's file, one of those that the lock names."""
        shown = path[:80]
        if source.folder is None:
            raise ShapeError(f"its image is the file `{shown}`, and its source has no folder `images`")
        name = posixpath.normpath(posixpath.join(source.folder, path))
        if name not in source.images:
            raise ShapeError(f"there is no image `{shown}` in `{source.folder}`")
        data = self._stage.file(name).read_bytes()
        if sha256(data) != source.images[name]:
            raise SpeccError(f"`{name}` is not the image that the lock names",
                             hint="`specc lock SPEC` pins it as it is now", code=Exit.STAGE)  # fmt: skip
        return data
