"""Where the images of a row stand: one mark in the text of a user's turn for each, in whichever way the row says it.

| in a row | known from |
|---|---|
| a part `{"type": "image_url", "image_url": {"url": "data:…"}}` of a message's content | OpenAI |
| a part `{"type": "image", "image": …}`, or `path`, `url` or `bytes` | transformers |
| a part `{"type": "image"}`, and the image in the column `images` | TRL |
| `<image>` in the text, and the image in the column `images` or `image` | LLaVA |
| nothing in the text, and images in the column: they stand before the first question | TRL |

An image is the path of a file, a `data:` URL, or the `{"bytes", "path"}` of a table (`datasets`' feature `Image`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from specc.core.images import Image
from specc.datagen.rows import MARK, Message
from specc.datagen.tools import ShapeError

See = Callable[[object], Image]
"""Takes what stands for an image in a row and returns what it is; raises `ShapeError`."""

COLUMNS: Final = ("images", "image")
"""Columns that hold a row's images, or its only one."""
_KINDS: Final = ("image", "image_url")
_PAYLOADS: Final = ("image", "image_url", "bytes", "path", "url")
_WRITTEN: Final = re.compile(r"\n?<image>\n?")
"""How LLaVA's data write an image: alone in a line, mostly."""


def refuse(value: object) -> Image:
    """Refuse an image: of a verifier that takes none."""
    del value
    raise ShapeError("it has an image, and the verifier takes none")


def in_columns(row: Mapping[str, Any]) -> list[object]:
    """Return the images that a row has in a column of its own."""
    value = next((row[key] for key in COLUMNS if row.get(key)), None)
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def is_image(part: object) -> bool:
    """Tell whether a part of a message's content is an image."""
    return isinstance(part, dict) and part.get("type") in _KINDS


def payload(part: Mapping[str, Any]) -> object:
    """Return what stands for the image in a part, None if it is in the row's column."""
    value = next((part[key] for key in _PAYLOADS if part.get(key) is not None), None)
    return value.get("url") if isinstance(value, dict) and "url" in value else value


def joined(parts: list[Any], text: Callable[[object], str], found: list[object]) -> str:
    """Return the text of a message's parts with a mark for each image, and add the images to `found`.

    One newline stands between two texts, as vLLM joins them for templates that take a string.
    """
    content, after_text = "", False
    for part in parts:
        if is_image(part):
            found.append(payload(part))
            content += MARK
        else:
            content += ("\n" if after_text else "") + text(part)
        after_text = not is_image(part)
    return content


def place(messages: list[Message], found: list[object], column: list[object], see: See) -> None:
    """Give each turn of the user the images whose marks are in it: `found` in parts, and those of the row's `column`.

    Raises `ShapeError` if there are more or fewer marks than images, for a mark in another's turn, and as `see` does.
    """
    if not found:
        if any(MARK in message["content"] for message in messages):
            raise ShapeError("its text has the character U+FFFC, which stands for an image here")
        users = [message for message in messages if message["role"] == "user"]
        for message in users:
            message["content"] = _WRITTEN.sub(MARK, message["content"])
        if not any(MARK in message["content"] for message in users):
            users[0]["content"] = MARK * len(column) + users[0]["content"]
        found = [None] * sum(message["content"].count(MARK) for message in users)
    if (bare := sum(image is None for image in found)) != len(column):
        raise ShapeError(
            f"it has {counted(len(column), 'image')} in a column of its own, and {counted(bare, 'place')} for them"
        )
    waiting = iter(column)
    values = [next(waiting) if image is None else image for image in found]
    marks = [message["content"].count(MARK) for message in messages]
    if sum(marks) != len(values):
        raise ShapeError("its text has the character U+FFFC, which stands for an image here")
    for number, (message, count) in enumerate(zip(messages, marks, strict=True), 1):
        if count and message["role"] != "user":
            raise ShapeError(f"turn {number} is of the role `{message['role']}` and has an image: only a user's may")
        if count:
            message["images"] = [see(value) for value in values[:count]]
            values = values[count:]


def counted(count: int, what: str) -> str:
    """Return `no images`, `1 image` or `2 images`."""
    return f"1 {what}" if count == 1 else f"{count or 'no'} {what}s"
