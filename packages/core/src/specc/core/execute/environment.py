"""The environment of a stage, made from nothing: what a caller has set does not reach an engine."""

from __future__ import annotations

import os
import site
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from specc.core.loggers import variables
from specc.core.resolve.hub import offline

PLAIN: Final[Mapping[str, str]] = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LC_ALL": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TZ": "UTC",
    "VLLM_NO_USAGE_STATS": "1",
}
FIXED: Final[Mapping[str, str]] = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS repeats its bits with a workspace of fixed size only
    "DS_ACCELERATOR": "cpu",
    # Threads that spin for long are ten times slower as soon as anything else runs, threads that sleep at once a
    # third slower when nothing does: some 50 µs of spinning is neither.
    "GOMP_SPINCOUNT": "30000",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MKL_DYNAMIC": "FALSE",  # else MKL takes fewer threads where it counts fewer cores, and sums differ
    "OMP_DYNAMIC": "FALSE",
    "PYTHONHASHSEED": "0",
    "RANK": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    # Each process of a verifier has as many threads as the key says; vLLM would give it a NUMA node instead.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "WORLD_SIZE": "1",
}
ISA: Final[Mapping[str, tuple[str, str, str]]] = {
    "amx": ("avx512", "AVX512_CORE_AMX", "AVX512"),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "avx2": ("avx2", "AVX2", "AVX2"),
}
"""Instruction set to `ATEN_CPU_CAPABILITY` (torch knows no more than `avx512`), `ONEDNN_MAX_CPU_ISA`, `MKL_CBWR`."""
TO_REACH_A_HUB: Final = (
    "HF_ENDPOINT", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip

TO_REACH_AN_ENDPOINT: Final = ("OPENAI_API_KEY", *(name for name in TO_REACH_A_HUB if not name.startswith("HF_")))


def environment(
    facets: Mapping[str, Any],
    work: Path,
    port: int,
    *,
    hub: bool = False,
    endpoint: bool = False,
    loggers: Iterable[str] = (),
    sockets: str | None = None,
    gpus: str | None = None,
) -> dict[str, str]:
    """Return a stage's whole environment.

    `facets` are the parts of the numerics class that its key names; a stage that names no threads gets one. `work`
    holds its home and its temporary files. `port` is free on 127.0.0.1. `hub` lets it reach a model hub, `endpoint` a
    server that gives answers.
    `loggers` are those that it tells of its training, which take where to from the caller's own variables. `sockets`
    is a folder with a short name, for those that the processes of a verifier speak through. `gpus` are those that it
    sees on CUDA, None for all.
    """
    caller = os.environ
    threads = str(facets.get("threads", 1))
    found = plain(work / "home", work / "tmp") | {
        **FIXED,
        "HF_HUB_OFFLINE": "0" if hub and not offline() else "1",
        "MASTER_PORT": str(port),
        "MKL_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "SPECC_PARENT": str(os.getpid()),
    }
    if (isa := facets.get("isa")) in ISA:
        found |= zip(("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"), ISA[isa], strict=True)
    if sockets is not None:
        found["VLLM_RPC_BASE_PATH"] = sockets
    if facets.get("device") == "cuda":
        found["DS_ACCELERATOR"] = "cuda"
        if gpus is not None:
            found["CUDA_VISIBLE_DEVICES"] = gpus
    for reaches, names in ((hub, TO_REACH_A_HUB), (endpoint, TO_REACH_AN_ENDPOINT)):
        if reaches:
            found |= {name: caller[name] for name in names if name in caller}
    found |= {name: caller[name] for name in variables(loggers) if name in caller}
    return found


def plain(home: Path, temporary: Path) -> dict[str, str]:
    """Return what every process that specc starts gets: nothing of the caller's but where programs are, no network."""
    caller = os.environ
    found = {**PLAIN, "HOME": str(home), "PATH": caller.get("PATH", os.defpath), "TMPDIR": str(temporary)}
    # Where specc is imported from, if that is not the interpreter's own site folder.
    if paths := [
        path for path in caller.get("PYTHONPATH", "").split(os.pathsep) if path and (Path(path) / "specc").is_dir()
    ]:
        found["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in paths)
    if site.ENABLE_USER_SITE:  # the user's own site folder is found through HOME, which is not the user's here
        found["PYTHONUSERBASE"] = site.getuserbase()
    return found


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
