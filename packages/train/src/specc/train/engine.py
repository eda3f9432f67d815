"""The DeepSpeed engine: one optimizer step at a time, with clipping and a learning rate that are ours."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, Final

import torch
from torch import Tensor, nn

from specc.core.engines import deepspeed_config
from specc.core.errors import Exit, SpeccError
from specc.train.muon import Directions, norm_of
from specc.train.optim import make_optimizer
from specc.train.whole import link_moments, master, moment, set_master, set_moment

MOMENTS: Final = ("exp_avg", "exp_avg_sq")
PATIENCE: Final = timedelta(days=1)
"""How long a rank waits for another: the first one validates alone."""


class Engine:
    """A draft model under DeepSpeed."""

    def __init__(
        self, model: nn.Module, train: Mapping[str, Any], directed: Collection[str], *, watched: bool = False
    ) -> None:
        """Hand `model` over; `directed` names the matrices that Muon moves, if the optimizer is Muon.

        `watched` asks for the gradient's norm also where nobody clips by it. Raises `SpeccError` for a configuration
        that DeepSpeed refuses.
        """
        config = deepspeed_config(train, os.environ["DS_ACCELERATOR"])
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
        options, clipping = train["optimizer"], train["gradient_clipping"]
        self.optimizer = make_optimizer(model, options, directed)
        self.muon: Directions | None = None
        if options["name"] == "muon":
            self.muon = Directions(self.names, directed, options["momentum"], clipping, watched=watched)
        self.gradient_norm: float | None = None
        """Euclidean norm of the last step's whole gradient before clipping, None unless `watched`."""
        self._watched, self._zero = watched, int(train["zero"]["stage"])
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
        if self._watched and self.muon is None and self._zero == 0:  # where every rank has the whole gradient
            self.gradient_norm = float(norm_of(self.names.values()))
        self.engine.step()
        if self._watched and self._zero:
            self.gradient_norm = float(self.engine.get_global_grad_norm())
        if self._watched and self.muon is not None:
            self.gradient_norm = self.muon.norm
        total = loss.detach().clone()
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return float(total)

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the other ranks in good order: a rank whose connections still run when it ends is aborted by them."""
        self.wait()
        torch.distributed.destroy_process_group()

    def weights(self) -> dict[str, Tensor]:
        """Return the fp32 masters of all parameters, whole, by the names of the checkpoint."""
        return {name: master(parameter) for name, parameter in self.names.items()}

    def state(self) -> dict[str, Tensor]:
        """Return all that training goes on from, whole, so that any number of ranks can; every rank has to ask.

        `NAME` are the fp32 masters, `NAME/exp_avg` and `NAME/exp_avg_sq` AdamW's moments, `NAME/momentum` Muon's, and
        `step` (fp32, one element) counts the optimizer's steps.
        """
        link_moments(self.engine.optimizer)
        found = self.weights()
        for name, parameter in self._by_adamw():
            found |= {f"{name}/{kind}": moment(self.optimizer, parameter, kind) for kind in MOMENTS}
        if self.muon is not None:
            found |= {f"{name}/momentum": buffer for name, buffer in self.muon.buffers.items()}
        steps = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        return found | {"step": torch.as_tensor(steps[0], dtype=torch.float32).reshape(1)}

    def take_up(self, state: Mapping[str, Tensor], *inputs: Any) -> None:
        """Go on from what `state` returned; the engine's model was built with its weights, and `inputs` are a step's.

        The optimizer has nothing to be set before its first step, so it does one, at a learning rate of 0.
        """
        self.step(0.0, *inputs)
        link_moments(self.engine.optimizer)
        for name, parameter in self.names.items():
            set_master(parameter, state[name])
        for name, parameter in self._by_adamw():
            for kind in MOMENTS:
                set_moment(self.optimizer, parameter, kind, state[f"{name}/{kind}"])
        if self.muon is not None:
            for name, buffer in self.muon.buffers.items():
                buffer.copy_(state[f"{name}/momentum"])
        for kept in self.optimizer.state.values():
            if "step" in kept:
                kept["step"] = state["step"].reshape(()).clone()

    def _by_adamw(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that AdamW moves."""
        directed = self.muon.directed if self.muon else ()
        return [(name, one) for name, one in self.names.items() if name not in directed]
