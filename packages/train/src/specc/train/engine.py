"""The DeepSpeed engine: one optimizer step at a time, with clipping and a learning rate that are ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specc.core.errors import Exit, SpeccError
from specc.train.muon import Directions
from specc.train.optim import make_optimizer

BUCKET: Final = 5_000_000
"""Elements that are reduced at once. DeepSpeed's default of 5e8 is allocated whole, and a draft is small."""

TAG: Final = "state"
MOMENTA: Final = "momenta.safetensors"
"""What of Muon's state DeepSpeed does not know."""
PATIENCE: Final = timedelta(days=1)
"""How long a rank waits for another: the first one validates alone."""


def deepspeed_config(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's configuration for the resolved `train` section.

    Clipping is stated even where it is off: DeepSpeed would clip at 1.0 by itself. One micro batch is one
    optimizer step, because the loss's weights are those of a whole step.
    """
    stage, offload, bf16 = train["zero"]["stage"], train["zero"]["offload"], train["precision"] == "bf16"
    muon = train["optimizer"]["name"] == "muon"  # which clips by itself, since DeepSpeed would clip its directions
    if bf16 and stage == 0:
        raise SpeccError("DeepSpeed keeps no fp32 masters for bf16 at ZeRO stage 0",
                         hint="set `train.zero.stage` to 1, or `train.precision` to fp32", code=Exit.INPUT)  # fmt: skip
    in_memory = {"device": "cpu", "pin_memory": os.environ.get("DS_ACCELERATOR") == "cuda"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0 if muon else float(train["gradient_clipping"] or 0.0),
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "overlap_comm": False,
            **({"stage3_prefetch_bucket_size": BUCKET, "stage3_max_live_parameters": BUCKET} if stage == 3 else {}),
            **({} if offload == "none" else {"offload_optimizer": in_memory}),
            **({"offload_param": in_memory} if offload == "parameters" else {}),
        },
        # The optimizer is ours, also where its state is offloaded: the same bits, and nothing to compile.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bf16:
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


class Engine:
    """A draft model under DeepSpeed."""

    def __init__(self, model: nn.Module, train: Mapping[str, Any], *, universal: bool = False) -> None:
        """Hand `model` over; raises `SpeccError` for a configuration that DeepSpeed refuses.

        With `universal`, what is loaded was written by another number of ranks and made universal since. (DeepSpeed
        without ZeRO needs no such thing: every rank has everything.)
        """
        config = deepspeed_config(train)
        self.universal = universal and train["zero"]["stage"] > 0
        if self.universal:
            config["checkpoint"] = {"load_universal": True}
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.config import DeepSpeedConfig

        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # Else the first start compiles a shared-memory all-reduce, which needs g++.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        try:
            DeepSpeedConfig(config)
        except (ValueError, AssertionError) as error:
            raise SpeccError(f"DeepSpeed refuses its configuration: {str(error).splitlines()[0]}",
                             hint="change `train.zero` or `train.precision`", code=Exit.INPUT) from error  # fmt: skip
        backend = "nccl" if os.environ.get("DS_ACCELERATOR") == "cuda" else "gloo"
        deepspeed.init_distributed(backend, verbose=False, timeout=PATIENCE)
        self.names = dict(model.named_parameters())
        self.optimizer = make_optimizer(model, train["optimizer"])
        options, clipping = train["optimizer"], train["gradient_clipping"]
        self.muon = Directions(self.names, options["momentum"], clipping) if options["name"] == "muon" else None
        self.engine: Any = deepspeed.initialize(model=model, optimizer=self.optimizer, config=config)[0]

    def step(self, learning_rate: float, *inputs: Any) -> float:
        """Do one optimizer step on `model(*inputs)`, this rank's part of the loss, and return the whole loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss: Tensor = self.engine(*inputs)
        # DeepSpeed takes the mean over the ranks, and the loss is their sum.
        self.engine.backward(loss * self.world if self.world > 1 else loss)
        if self.muon is not None:
            self.muon.apply()
        self.engine.step()
        total = loss.detach().clone()
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return float(total)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def weights(self) -> dict[str, Tensor]:
        """Return the fp32 masters of all parameters, whole, by the names of the checkpoint."""
        from deepspeed.utils import safe_get_full_fp32_param

        found: dict[str, Tensor] = {}
        for name, parameter in self.names.items():
            master = safe_get_full_fp32_param(parameter)
            whole = parameter.detach() if master is None else master
            found[name] = whole.to(torch.float32).clone().view(parameter.shape if master is None else whole.shape)
        return found

    def save(self, folder: Path) -> None:
        """Write the parameters, masters and optimizer state into `folder`, in DeepSpeed's own files."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        if self.muon is not None and self.rank == 0:
            save_file(self.muon.buffers, folder / MOMENTA)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote. The files are unpickled: check their seal first."""
        self.engine.load_checkpoint(str(folder), tag=TAG)
        if self.muon is not None:
            # Cloned: a file's tensors may be aligned to 8 bytes only, and some operators then differ in bits.
            self.muon.buffers = {name: tensor.clone() for name, tensor in load_file(folder / MOMENTA).items()}


def make_universal(saved: Path, made: Path) -> None:
    """Write at `made` what `Engine.save` wrote at `saved`, for any number of ranks to load. Its seal was checked."""
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    command = [
        sys.executable, "-P", "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(saved / TAG),
        "--output_folder", str(made / TAG), "--num_extract_workers", "1", "--num_merge_workers", "1",
        "--inject_missing_state",
    ]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SpeccError("DeepSpeed could not make its checkpoint universal", where=str(saved), code=Exit.STAGE)
    if (saved / MOMENTA).is_file():
        shutil.copy(saved / MOMENTA, made / MOMENTA)
