"""Training checkpoints: whole or not there, sealed, and the only thing that is ever unpickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from specc.core.files import directory_digest, entries, pretty, sync, walk, write_atomic
from specc.train.engine import Engine

SEAL: Final = "seal"


@dataclass(slots=True)
class Progress:
    """Where training is, beside what the engine holds: plain values, written as JSON without loss."""

    step: int = 0
    """Optimizer steps done."""
    losses: list[float] = field(default_factory=list[float])
    """Losses of the current epoch's steps."""
    initial: dict[str, Any] = field(default_factory=dict[str, Any])
    epochs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    best: int = 0
    """Epoch of the best weights, from 1; 0 for none yet."""


class Checkpoints:
    """A folder of checkpoints of which the newest whole one counts."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)

    def save(self, engine: Engine, progress: Progress, best: dict[str, Tensor] | None) -> None:
        """Write a checkpoint, then drop the ones before it; a crash leaves the old one or the new one.

        All ranks write their part, and the first one the rest.
        """
        name = f"step-{progress.step:09d}"
        draft = self.folder / f".{name}"
        if engine.rank == 0:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
        engine.wait()
        engine.save(draft / "engine")
        engine.wait()
        if engine.rank == 0:
            self._seal_up(draft, name, progress, best)
        engine.wait()

    def _seal_up(self, draft: Path, name: str, progress: Progress, best: dict[str, Tensor] | None) -> None:
        write_atomic(draft / "progress.json", pretty(asdict(progress)))
        if best is not None:
            save_file(best, draft / "best.safetensors")
        for path in walk(draft):
            sync(path)
        write_atomic(draft / SEAL, self._seal(draft))
        final = self.folder / name
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync(self.folder)
        for old in self._found():
            if old != final:
                shutil.rmtree(old)

    def restore(self, engine: Engine, warn: Callable[[str], None]) -> tuple[Progress, dict[str, Tensor] | None] | None:
        """Load the newest whole checkpoint into `engine`; None if there is none. One that changed is not touched.

        Every rank looks at the same files, and so comes to the same one.
        """
        for folder in reversed(self._found()):
            seal = folder / SEAL
            if not seal.is_file() or seal.read_text() != self._seal(folder):
                warn(f"training checkpoint `{folder.name}` is damaged and is not used")
                continue
            engine.load(folder / "engine")
            progress = Progress(**json.loads((folder / "progress.json").read_text()))
            best = folder / "best.safetensors"
            # Cloned: a file's tensors may be aligned to 8 bytes only, and some operators then differ in bits.
            tensors = {name: tensor.clone() for name, tensor in load_file(best).items()} if best.is_file() else None
            engine.wait()
            return progress, tensors
        engine.wait()
        return None

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _seal(self, folder: Path) -> str:
        """Return a digest over the checkpoint's files and the key it belongs to."""
        files = [entry for entry in entries(folder) if entry.path != SEAL]
        return f"{self.key} {directory_digest(files)}\n"
