"""Conversations that are nearly equal to an earlier one, by MinHash (Broder 1997) in bands (Indyk and Motwani 1998).

A text is the set of its runs of `WINDOW` characters. Of 128 hashes of the runs the least values are its signature: two
texts have a value in common with a chance of their Jaccard similarity, the size of the sets' intersection over that of
their union. Values are looked up in bands of some of them at once, and what is found there is compared by its whole
signature, whose estimate has a standard error of at most 0.045. All hashes are fixed, and whole numbers: every machine
decides alike.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from specc.core.errors import Exit, SpeccError

HASHES: Final = 128
WINDOW: Final = 8
"""Characters of a run: longer than most words, so that texts of one language share few of them."""
FOUND: Final = 0.99
"""Chance at least with which a pair of just the asked similarity is looked at."""
PIECE: Final = 1 << 14
"""Runs that are hashed at once: 16 MiB for all of their values."""
_FACTOR: Final = 0x100000001B3


def rows_of_band(similarity: float) -> int:
    """Return how many values a band has: as many as leave a pair of that similarity the chance `FOUND`."""
    for rows in range(HASHES, 1, -1):
        if 1 - (1 - similarity**rows) ** (HASHES // rows) >= FOUND:
            return rows
    return 1


class Signatures:
    """Makes signatures; numpy is loaded with the first one."""

    def __init__(self) -> None:
        try:
            import numpy as np
        except ImportError as error:
            raise SpeccError("`data.filters.near_duplicates` needs numpy, which is not installed",
                             hint="`pip install 'specc[data]'` brings it", code=Exit.STAGE) from error  # fmt: skip
        self._np: Any = np
        drawn = hashlib.shake_256(b"specc minhash 1").digest(16 * HASHES)
        constants = np.frombuffer(drawn, dtype="<u8").reshape(2, HASHES)
        self._factors, self._terms = constants[0] | np.uint64(1), constants[1]

    def of(self, text: str) -> Any:
        """Return the signature of a text, `uint32 [128]`; capitals of ASCII and the width of spaces do not count."""
        np = self._np
        letters = np.frombuffer(" ".join(text.split()).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        letters = letters.astype(np.uint64)
        letters[(letters >= 65) & (letters <= 90)] += np.uint64(32)
        size = max(1, min(WINDOW, len(letters)))
        runs = np.zeros(max(1, len(letters) - size + 1), dtype=np.uint64)
        for offset in range(min(size, len(letters))):
            runs = (runs ^ letters[offset : offset + len(runs)]) * np.uint64(_FACTOR)
        # The finaliser of SplitMix64: neighbouring numbers become unlike ones (Steele, Lea and Flood 2014).
        runs = (runs ^ (runs >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        runs = (runs ^ (runs >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        runs = np.unique(runs ^ (runs >> np.uint64(31)))
        least = np.full(HASHES, 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
        for start in range(0, len(runs), PIECE):
            values = runs[start : start + PIECE, None] * self._factors  # [runs, hashes], modulo 2^64
            values += self._terms
            least = np.minimum(least, values.min(axis=0))
        return (least >> np.uint64(32)).astype(np.uint32)

    def bands(self, signature: Any, rows: int) -> list[int]:
        """Return the keys of a signature's bands, each of `rows` values: 64 bits that also say which band it is."""
        found: list[int] = []
        for at in range(0, HASHES - rows + 1, rows):
            state = hashlib.blake2b(signature[at : at + rows].tobytes(), digest_size=8, salt=at.to_bytes(2, "big"))
            found.append(int.from_bytes(state.digest(), "big", signed=True))
        return found

    def similarity(self, one: Any, other: bytes) -> float:
        """Return the estimate of two texts' similarity; `other` are a signature's bytes."""
        return float((one == self._np.frombuffer(other, dtype=self._np.uint32)).mean())


class NearDuplicates:
    """The conversations that were kept, by their signatures: on disk, 512 bytes and the bands' keys for each."""

    def __init__(self, path: Path, similarity: float) -> None:
        self._similarity, self._rows = similarity, rows_of_band(similarity)
        self._signatures = Signatures()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a run that was killed
        self._path, self._kept = path, 0
        self._store = sqlite3.connect(path, isolation_level=None)
        for line in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA locking_mode=EXCLUSIVE",
                     "CREATE TABLE bands (key INTEGER PRIMARY KEY, text INTEGER)",
                     "CREATE TABLE signatures (text INTEGER PRIMARY KEY, data BLOB)", "BEGIN"):  # fmt: skip
            self._store.execute(line)

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._store.close()
        self._path.unlink(missing_ok=True)

    def add(self, text: str, images: str = "") -> bool:
        """Keep a text; return False, and keep it not, if one that was kept is as similar as is asked, or more.

        Texts about different `images`, named by their sha256, are not similar at all.
        """
        signature = self._signatures.of(text)
        if images:
            signature ^= int(hashlib.sha256(images.encode()).hexdigest()[:8], 16)
        keys = self._signatures.bands(signature, self._rows)
        found: Iterable[tuple[bytes]] = self._store.execute(
            "SELECT data FROM signatures WHERE text IN (SELECT text FROM bands WHERE key IN"  # noqa: S608 - marks alone
            f" ({', '.join('?' * len(keys))}))", keys)  # fmt: skip
        if any(self._signatures.similarity(signature, data) >= self._similarity for (data,) in found):
            return False
        self._store.execute("INSERT INTO signatures VALUES (?, ?)", (self._kept, signature.tobytes()))
        self._store.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", ((key, self._kept) for key in keys))
        self._kept += 1
        return True
