"""vLLM's hidden-states connector on a machine without CUDA.

vLLM imports this module by its name in the process of the engine (`kv_connector_module_path`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as stock


class Done:
    """Stands for the CUDA event of a copy: on a CPU the copy is over before anybody asks."""

    def query(self) -> bool:
        """Tell that the copy is over."""
        return True

    def synchronize(self) -> None:
        """Wait for nothing."""


class CpuHiddenStatesConnector(stock.ExampleHiddenStatesConnector):
    """The stock connector copies on a CUDA stream into pinned memory; here the copy is a plain one."""

    def _submit_async_write(self, pending: stock.PendingSave) -> None:
        """Gather a finished request's states from the cache and hand them to the writing threads."""
        if not self._is_tp_rank_zero:
            return
        if self._kv_cache is None:
            raise RuntimeError("the connector was asked for states before it had a cache")
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)
        slots = (blocks[:, None] * self._block_size + torch.arange(self._block_size)).flatten()  # [positions]
        tokens = len(pending.token_ids)
        # Indexing with a tensor copies, so the cache's blocks are free for other requests as soon as it is done.
        states = stock.extract_from_kv_cache(self._kv_cache, slots[:tokens], tokens)  # [tokens, layers, hidden]
        tensors = {"hidden_states": states, "token_ids": pending.token_ids.clone()}
        event: Any = Done()
        lock = self._lock_fds.pop(pending.req_id, None)
        future = self._executor.submit(self._write_tensors, tensors, event, pending.filename, lock)
        self._req_copy_events[pending.req_id] = event
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))
