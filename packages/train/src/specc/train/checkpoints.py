"""Training checkpoints: safetensors and JSON, whole or not there, and sealed.

They hold whole tensors and not DeepSpeed's files, which are pickles and know one number of ranks. Each phase of a
training has a folder of them, and starts from the last one of the phase before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from specc.core.errors import Exit, SpeccError
from specc.core.files import directory_digest, entries, pretty, sync, walk, write_atomic

SEAL: Final = "seal"
NAME: Final = "step-"


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


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds: `state` is the engine's, `best` the best epoch's weights, if there is one yet."""

    progress: Progress
    state: dict[str, Tensor]
    best: dict[str, Tensor] | None


class Checkpoints:
    """A folder of checkpoints of which the newest whole one counts; `before` are those of the phase before."""

    def __init__(self, folder: Path, key: str, before: Checkpoints | None = None) -> None:
        self.folder, self.key, self.before = folder, key, before

    @classmethod
    def of(cls, work: Path, phase: int, key: str) -> Checkpoints:
        """Return the checkpoints of a phase of the training that has the folder `work`."""
        earlier = cls.of(work, phase - 1, key) if phase else None
        return cls(work / "checkpoints" / str(phase), key, earlier)

    def save(self, progress: Progress, state: Mapping[str, Tensor], best: Mapping[str, Tensor] | None) -> None:
        """Write a checkpoint, then drop the ones before it; a crash leaves the old one or the new one."""
        name = f"{NAME}{progress.step:09d}"
        draft = self._begin(name)
        write_atomic(draft / "progress.json", pretty(asdict(progress)))
        save_file(dict(state), draft / "state.safetensors")
        if best is not None:
            save_file(dict(best), draft / "best.safetensors")
        self._finish(draft, name)
        for old in self._found():
            if old.name != name:
                shutil.rmtree(old)

    def restore(self, warn: Callable[[str], None]) -> Saved | None:
        """Read the newest whole checkpoint, of the phase before if there is none yet; None if there is none at all.

        Every rank looks at the same files, and so comes to the same one.
        """
        folder = self.newest(warn) or (self.before and self.before.newest(warn))
        if folder is None:
            return None
        best = folder / "best.safetensors"
        return Saved(
            Progress(**json.loads((folder / "progress.json").read_text())),
            _tensors(folder / "state.safetensors"),
            _tensors(best) if best.is_file() else None,
        )

    def newest(self, warn: Callable[[str], None]) -> Path | None:
        """Return the folder of the newest whole checkpoint, None if there is none. One that changed is not touched."""
        for folder in reversed(self._found()):
            if self._is_sealed(folder):
                return folder
            warn(f"training checkpoint `{folder.name}` is damaged and is not used")
        return None

    def step(self, warn: Callable[[str], None]) -> int | None:
        """Return the step after which the newest whole checkpoint stands, None if there is none."""
        found = self.newest(warn)
        return int(found.name.removeprefix(NAME)) if found else None

    def take_up(self, other: Checkpoints, until: int) -> None:
        """Take over what an unfinished training of the same phase left, if there is anything and we have nothing.

        What is copied is checked once it is here: the other training may be going on. Raises `SpeccError` if it
        stands after a later step than `until` already.
        """
        found = None if self.newest(_quiet) else other.newest(_quiet)
        if found is None:
            return
        if (step := int(found.name.removeprefix(NAME))) > until:
            raise SpeccError(f"the training to be gone on with stands after step {step}, and `runtime.train.ranks` ends"
                             f" it after step {until}", code=Exit.INPUT,
                             hint=f"write `until: {step}`, or drop it: `specc gc --unfinished`")  # fmt: skip
        draft = self._begin(found.name)
        try:
            shutil.copytree(found, draft, dirs_exist_ok=True)
        except OSError:  # the other training has just dropped it for the next one
            return
        if other._is_sealed(draft):
            self._finish(draft, found.name)

    def _begin(self, name: str) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.folder / f".{name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        return draft

    def _finish(self, draft: Path, name: str) -> None:
        """Give a checkpoint its name, sealed, once all of it is on the disk."""
        for path in walk(draft):
            sync(path)
        write_atomic(draft / SEAL, self._seal(draft))
        shutil.rmtree(self.folder / name, ignore_errors=True)
        draft.rename(self.folder / name)
        sync(self.folder)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob(f"{NAME}*"))

    def _is_sealed(self, folder: Path) -> bool:
        seal = folder / SEAL
        return seal.is_file() and seal.read_text() == self._seal(folder)

    def _seal(self, folder: Path) -> str:
        """Return a digest over the checkpoint's files and the key it belongs to."""
        files = [entry for entry in entries(folder) if entry.path != SEAL]
        return f"{self.key} {directory_digest(files)}\n"


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors, cloned: they may be aligned to 8 bytes only, and some operators then differ in bits."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _quiet(_: str) -> None:
    """Say nothing of a damaged checkpoint: it is not the one that is gone on from."""
