"""Files that come with specc and are no modules: inside the package in a wheel, elsewhere in a checkout."""

from __future__ import annotations

from pathlib import Path


def shipped(module: str, packaged: str, checkout: str) -> Path:
    """Return where a file or folder is, whether it is there or not.

    `packaged` is its path beside a `module` of ours (its `__file__`) in a wheel, `checkout` that from the root of a
    checkout, or from its `packages` folder.
    """
    here = Path(module).resolve().parent
    candidates = [here / packaged, *(parent / checkout for parent in here.parents[4:6])]
    return next((path for path in candidates if path.exists()), candidates[0])
