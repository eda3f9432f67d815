"""safetensors files by hand, so that tests of the compiler need no engine."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any


def safetensors_bytes(header: Mapping[str, Any] | bytes, body: bytes = b"") -> bytes:
    """Return a file with this header (as it is, if bytes) and body."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def one_tensor(
    values: tuple[float, ...] = (1.0, 2.0), name: str = "w", metadata: dict[str, str] | None = None
) -> bytes:
    """Return a file with one float32 vector."""
    body = struct.pack(f"<{len(values)}f", *values)
    header: dict[str, Any] = {name: {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(body)]}}
    if metadata is not None:
        header["__metadata__"] = metadata
    return safetensors_bytes(header, body)
