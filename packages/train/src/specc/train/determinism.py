"""The same job gives the same bits: what that asks of torch, and random streams that are counted."""

from __future__ import annotations

import hashlib

import torch


def set_determinism(threads: int) -> None:
    """Make torch's results a function of its inputs on this numerics class; `threads` is per process."""
    # Sums over threads are split by their number.
    torch.set_flush_denormal(True)  # before a worker thread exists: each takes the setting over from its maker
    torch.set_num_threads(threads)
    # Operators without a deterministic form raise in place of differing.
    torch.use_deterministic_algorithms(mode=True)
    # Filling every new tensor with NaN finds reads of unset memory; it costs a pass over each, and we read none.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    # TF32 and reduced-precision sums are chosen per device, not per job.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Return a random stream of its own for (`seed`, `names`): a restart or another order loses nothing of it."""
    material = "\0".join(str(part) for part in (seed, *names)).encode()
    number = int.from_bytes(hashlib.sha256(material).digest()[:8], "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))
