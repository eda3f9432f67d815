"""The order in which an epoch takes its shards: a pure function that whoever makes shards can ask as well."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def shard_windows(shards: Iterable[int], size: int, *, seed: int, epoch: int, shuffle: bool) -> list[list[int]]:
    """Return an epoch's shards in windows of `size`, each in ascending order; epochs are counted from 1.

    Training is done with a window before it begins the next one, so that no shard is needed outside its own. Without
    `shuffle` the windows are consecutive; with it they are drawn anew each epoch.
    """
    order = sorted(shards)
    if shuffle:
        order.sort(key=lambda shard: hashlib.sha256(f"{seed}\0draft\0shards\0{epoch}\0{shard}".encode()).digest())
    return [sorted(order[start : start + size]) for start in range(0, len(order), size)]
