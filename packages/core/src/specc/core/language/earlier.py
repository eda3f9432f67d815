"""The speculator in `draft.init`: whether it is one of the draft's algorithm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specc.core.language.text import printable

if TYPE_CHECKING:
    from specc.core.errors import SpeccError
    from specc.core.language.document import Document
    from specc.core.language.node import KeyPath


def init_error(document: Document, path: KeyPath, folder: Path) -> SpeccError | None:
    """Return the error for a speculator of another algorithm; of a folder without a readable one others tell."""
    try:
        config: Any = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    draft = document.data["draft"]
    found = config.get("speculators_model_type") if isinstance(config, dict) else None
    if found == draft.get("algorithm"):
        return None
    what = f"of the algorithm `{printable(found)}`" if isinstance(found, str) else "not in the speculators format"
    return document.error(f"the speculator to start from is {what}", path, id="E0506",
                          hint=f"name one of the algorithm `{printable(str(draft.get('algorithm')))}`, or remove"
                          " `init`")  # fmt: skip
