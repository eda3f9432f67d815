"""Images as they come from data: what one is, and that it can be shown to a verifier, before anything is made of it.

Bytes are looked at with Pillow and never changed. Their size in pixels is that of the picture as it is shown, turned as
its EXIF data say, which is how vLLM loads it.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Any, Final, TypedDict

from specc.core.errors import Exit, SpeccError
from specc.core.files import sha256

FORMATS: Final = ("PNG", "JPEG", "WEBP")
"""Formats that are read, by Pillow's names."""
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
"""How names of files of images end."""
MAX_BYTES: Final = 32 << 20
"""Bytes of an image at most."""
MAX_PIXELS: Final = 1 << 26
"""Pixels of an image at most, 8,192 by 8,192: a few kilobytes can unpack to gigabytes."""
MAX_SIDES: Final = 200
"""How much longer one side may be than the other: processors make the short one some hundred pixels long, and the other
longer in proportion, which is a bomb of another kind."""
ADDRESS: Final = ("http:", "https:", "ftp:", "s3:", "gs:", "hf:")


class Image(TypedDict):
    """An image in a row: the sha256 of its bytes, by which it is found, and its size as it is shown, in pixels."""

    sha256: str
    width: int
    height: int


class ImageError(ValueError):
    """Why bytes are no image that is taken, in a few words."""


def look(data: bytes) -> Image:
    """Return what an image's bytes hold, all of it decoded once; raises `ImageError`."""
    if not data:
        raise ImageError("has no bytes")
    if len(data) > MAX_BYTES:
        raise ImageError(f"has {len(data)} bytes, and {MAX_BYTES >> 20} MiB are allowed")
    try:
        from PIL import Image as Pillow
        from PIL import ImageOps
    except ImportError as error:
        raise SpeccError("images are looked at with Pillow, which is not installed",
                         hint="`pip install 'specc[data]'` brings it", code=Exit.STAGE) from error  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # our bound is a lower one
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                _bound(image)
                image.load()
                width, height = _upright(image, ImageOps).size
    except ImageError:
        raise
    except Pillow.DecompressionBombError as error:
        raise ImageError(f"has more than {MAX_PIXELS >> 20} Mi pixels") from error
    except Pillow.UnidentifiedImageError as error:
        raise ImageError("is no PNG, JPEG or WebP that can be read") from error
    except Exception as error:  # a decoder of damaged bytes raises whatever it stumbles over
        raise ImageError("is damaged") from error
    return {"sha256": sha256(data), "width": width, "height": height}


def _bound(image: Any) -> None:
    """Raise `ImageError` for an image of too many pixels, before any of them is made, or of several pictures."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"has {width} x {height} pixels, and {MAX_PIXELS >> 20} Mi are allowed")
    if max(width, height) > MAX_SIDES * min(width, height):
        raise ImageError(f"has {width} x {height} pixels, and its sides may be {MAX_SIDES} to 1")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # a camera's MPO is a JPEG and its preview
        raise ImageError("is animated")


def _upright(image: Any, ops: Any) -> Any:
    """Return an image turned as its EXIF data say; as it is where these cannot be read."""
    try:
        return ops.exif_transpose(image)
    except Exception:  # noqa: BLE001 - as vLLM, which shows such an image as it is
        return image


def from_url(url: str) -> bytes:
    """Return the bytes of a `data:` URL in base64 (RFC 2397); raises `ImageError`, for every other address too."""
    if not url.startswith("data:"):
        raise ImageError("is at an address, and nothing is fetched for a row")
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError("is a `data:` URL that is not base64")
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"has more than {MAX_BYTES >> 20} MiB")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("is a `data:` URL that is not base64") from error
