"""The temperature that vLLM draws with on a CPU when it speculates.

vLLM's rejection sampler copies a request's temperature, top-k and top-p to each of its drafted tokens, with
`expand_kernel`. What stands for that kernel on a CPU in vLLM 0.32 fills a copy in int64 and drops it
(vllm-project/vllm#55005): the logits are then divided by what was in that memory before. No request with a temperature
has its own distribution, and with a seed it does not repeat either. Greedy requests never get there.
"""

from __future__ import annotations

from typing import Any


def mend() -> None:
    """Give vLLM on a CPU an `expand_kernel` that writes what it is asked for; elsewhere do nothing.

    To be called before an engine starts, since a worker takes vLLM's own when it does. vLLM calls it in each of its
    processes: it is a plugin of the group `vllm.general_plugins`, so that a server of `specc serve` has it too.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.utils import cpu_triton_utils

        kernels: Any = cpu_triton_utils
        kernels._expand_kernel_impl = expand


def expand(  # noqa: PLR0917 - the arguments of the kernel, as vLLM gives them
    output: Any, values: Any, ends: Any, replace_from: int, replace_to: int, MAX_NUM_TOKENS: int = 0
) -> None:
    """Write each request's value to its drafted tokens, and `replace_to` where that is `replace_from`.

    `values` and `ends` are `[requests]`, `output` is `[tokens]` and of the dtype of `values`; `ends` counts the drafted
    tokens up to and with each request, and the last one is all of them:

        values [.7, 0, 1], ends [2, 3, 6], 0 replaced by 1: output [.7, .7, 1, 1, 1, 1]
    """
    import torch

    drafted = torch.diff(ends, prepend=ends.new_zeros(1))  # [requests]
    kept = torch.where(values == replace_from, replace_to, values)  # [requests]
    output.copy_(kept.repeat_interleave(drafted))  # [tokens]
