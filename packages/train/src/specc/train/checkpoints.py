"""Training checkpoints: whole or not there, sealed, and the only thing that is ever unpickled.

Each phase of a training has a folder of them. A phase starts from the last one of the phase before it, which other
ranks wrote: DeepSpeed's universal checkpoint is what any number of them can read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.core.files import directory_digest, entries, pretty, sync, walk, write_atomic
from specc.train.engine import Engine, make_universal

SEAL: Final = "seal"
NAME: Final = "step-"
UNIVERSAL: Final = ".universal"


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
    """A folder of checkpoints of which the newest whole one counts; `before` are those of the phase before."""

    def __init__(self, folder: Path, key: str, before: Checkpoints | None = None) -> None:
        self.folder, self.key, self.before = folder, key, before
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)

    @classmethod
    def of(cls, work: Path, phase: int, key: str) -> Checkpoints:
        """Return the checkpoints of a phase of the training that has the folder `work`."""
        earlier = cls.of(work, phase - 1, key) if phase else None
        return cls(work / "checkpoints" / str(phase), key, earlier)

    @property
    def changes_ranks(self) -> bool:
        """Tell whether training goes on from the phase before, which had another number of ranks."""
        return self.before is not None and not self._found()

    def take_up(self, other: Checkpoints, until: int) -> None:
        """Take over what an unfinished training of the same phase left, if there is anything and we have nothing.

        Raises `SpeccError` if it stands after a later step than `until` already.
        """
        found = other.newest(lambda _: None) if not self._found() else None
        if found is None:
            return
        if (step := int(found.name.removeprefix(NAME))) > until:
            raise SpeccError(f"the training to be gone on with stands after step {step}, and `runtime.train.ranks` ends"
                             f" it after step {until}", code=Exit.INPUT,
                             hint=f"write `steps: {step}`, or drop it: `specc gc --unfinished`")  # fmt: skip
        draft = self.folder / f".{found.name}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(found, draft)
        write_atomic(draft / SEAL, self._seal(draft))
        draft.rename(self.folder / found.name)

    def save(self, engine: Engine, progress: Progress, best: dict[str, Tensor] | None) -> None:
        """Write a checkpoint, then drop the ones before it; a crash leaves the old one or the new one.

        All ranks write their part, and the first one the rest.
        """
        name = f"{NAME}{progress.step:09d}"
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
        folder = self.newest(warn) or (self.before and self.before.newest(warn))
        if folder is None:
            engine.wait()
            return None
        if engine.universal:
            if engine.rank == 0:
                make_universal(folder / "engine", self.folder / UNIVERSAL)
            engine.wait()
            engine.load(self.folder / UNIVERSAL)
            if engine.rank == 0:
                shutil.rmtree(self.folder / UNIVERSAL)
        else:
            engine.load(folder / "engine")
        progress = Progress(**json.loads((folder / "progress.json").read_text()))
        best = folder / "best.safetensors"
        # Cloned: a file's tensors may be aligned to 8 bytes only, and some operators then differ in bits.
        tensors = {name: tensor.clone() for name, tensor in load_file(best).items()} if best.is_file() else None
        engine.wait()
        return progress, tensors

    def newest(self, warn: Callable[[str], None]) -> Path | None:
        """Return the folder of the newest whole checkpoint, None if there is none."""
        for folder in reversed(self._found()):
            seal = folder / SEAL
            if seal.is_file() and seal.read_text() == self._seal(folder):
                return folder
            warn(f"training checkpoint `{folder.name}` is damaged and is not used")
        return None

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob(f"{NAME}*"))

    def _seal(self, folder: Path) -> str:
        """Return a digest over the checkpoint's files and the key it belongs to."""
        files = [entry for entry in entries(folder) if entry.path != SEAL]
        return f"{self.key} {directory_digest(files)}\n"
