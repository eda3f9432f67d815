"""A checkpoint and its verifier, as vLLM serves them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from specc.core.algorithms import ALGORITHMS, algorithm
from specc.core.contracts import Manifest
from specc.core.engines import architecture
from specc.core.errors import Exit, SpeccError
from specc.core.files import sha256_file
from specc.core.serving.server import START, Server, serving
from specc.core.store import Store
from specc.core.store.manifests import SHORT

HOST: Final = "127.0.0.1"
"""Nobody else's machine can reach the server unless its owner changes this."""
SPREAD: Final = ("--tensor-parallel-size", "-tp")
"""Flags that spread a verifier over GPUs, which may be others than those that it was run on in the build."""
OURS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("-sc", "--model-tag"), "the checkpoint decides it"),
    **dict.fromkeys(("--uds", "--headless", "--grpc"), "specc asks the server on a port whether it is ready"),
    **dict.fromkeys(("--ssl-keyfile", "--ssl-certfile"), "specc speaks plain HTTP with it; put a proxy before it"),
    "--config": "its flags could not be told from ours; give them one by one",
}
"""Flags of vLLM that would take away what this command stands on, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A checkpoint in the store and the verifier it was made for, both by path."""

    name: str
    checkpoint: Manifest
    values: Mapping[str, Any]
    """The checkpoint's resolved values, as `values_of` has them."""
    speculator: Path
    verifier: Path
    store: Store
    digests: tuple[str, ...]
    """What is read of the store: the checkpoint first, what is served as the verifier last."""
    processes: int = 1
    """Processes that the verifier was spread over when the draft's hidden states were made."""


def served_of(store: Store, checkpoint: Manifest) -> Served:
    """Return a checkpoint of the store as it is served: with its verifier, or inside it.

    Raises `SpeccError` if the verifier's artifact is gone, or the one that a head is stitched into.
    """
    values = values_of(store, checkpoint)
    name = str(values["name"])
    speculator, verifier = store.path(checkpoint.digest), store.path(checkpoint.inputs["verifier"])
    digests = (checkpoint.digest, checkpoint.inputs["verifier"])
    if is_stitched(values["draft"]):
        stitched = stitched_of(store, checkpoint)
        speculator = verifier = store.path(stitched.digest)
        digests = (checkpoint.digest, stitched.digest)
    return Served(name=name, checkpoint=checkpoint, values=values, speculator=speculator, verifier=verifier,
                  store=store, digests=digests, processes=_processes(store, checkpoint))  # fmt: skip


def _processes(store: Store, checkpoint: Manifest) -> int:
    """Return the processes of the verifier that a checkpoint's states are from, 1 if that is not known here."""
    key = checkpoint.params.get("stages", {}).get("hidden_states", {}).get("key")
    digest = store.find("hidden_states", key) if key else None
    return int(store.manifest(digest, key).facets.get("tensor_parallel", 1)) if digest else 1


def values_of(store: Store, checkpoint: Manifest) -> Mapping[str, Any]:
    """Return a checkpoint's resolved values: `name`, `draft`, `verifier`, `export`, and what prompts are made with.

    Those of a conversion, which no spec describes, are in its own files; its verifier runs in bfloat16, and its
    template may print the day on which it was converted.
    """
    if checkpoint.stage == "checkpoint":
        return checkpoint.params
    said: dict[str, Any] = json.loads((store.path(checkpoint.digest) / "specc.json").read_text("utf-8"))
    template = store.path(checkpoint.inputs["verifier"]) / "chat_template.jinja"
    return {
        "name": said["name"].rpartition("/")[2],
        "draft": said["resolved"]["draft"],
        "verifier": {
            **checkpoint.params["verifier"],
            "dtype": "bfloat16",
            "chat_template_sha256": sha256_file(template) if template.is_file() else None,
        },
        "export": said["resolved"]["export"],
        "data": {"system_prompt": None},
        "date": str(store.record(checkpoint.key).get("started", time.strftime("%Y-%m-%d", time.gmtime())))[:10],
    }


def is_stitched(draft: Mapping[str, Any]) -> bool:
    """Tell whether a draft is served inside its verifier."""
    return draft["algorithm"] in ALGORITHMS and algorithm(draft["algorithm"]).stitched


def serving_of(draft: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what vLLM is told of a draft; what the speculators format has no word for is a method of vLLM's own."""
    name = draft["algorithm"]
    return algorithm(name).serving if name in ALGORITHMS else {"method": name}


def stitched_of(store: Store, checkpoint: Manifest) -> Manifest:
    """Return the verifier that a head was stitched into; raises `SpeccError` if it is not here."""
    name = str(values_of(store, checkpoint)["name"])
    stitched = store.last(name, "stitched")
    if stitched is None or stitched.inputs["checkpoint"] != checkpoint.digest:
        raise SpeccError(f"the verifier that `{name}` is stitched into is not here", where=str(store.root),
                         hint="`specc build SPEC` makes it")  # fmt: skip
    return stitched


def vllm_command(
    served: Served,
    *,
    device: str,
    host: str = HOST,
    port: int,
    speculate: bool = True,
    further: Sequence[str] = (),
) -> list[str]:
    """Return the words of the command: an OpenAI server on `host`, with `further` flags of vLLM at its end.

    Both paths are given, since the speculator's own config names its verifier by a hub id or a logical name. Without
    `speculate` it serves the verifier alone. Raises `SpeccError` if a further flag is one that is given already.
    """
    params = served.values
    speculative: dict[str, Any] = {
        **serving_of(params["draft"]),
        "model": str(served.speculator),
        "num_speculative_tokens": params["export"]["speculative_tokens"],
    }
    # The CPU build has another distribution name, at which `vllm serve` stumbles; its module is the same server.
    # Eager there: compiling takes minutes at the first start and gives a quarter more at best.
    if device == "cuda":
        start, device_flags = ["vllm", "serve", str(served.verifier)], []
    else:
        start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(served.verifier)]
        device_flags = ["--enforce-eager"]
    flags = {"--served-model-name": served.name, "--dtype": str(params["verifier"]["dtype"])}
    if speculate:
        flags["--speculative-config"] = json.dumps(speculative, sort_keys=True)
    flags |= {"--host": host, "--port": str(port)}
    if (other := architecture(params["verifier"]["config"])) != {}:
        flags["--hf-overrides"] = json.dumps(other["hf_overrides"])
    if served.processes > 1 and not any(word.split("=")[0] in SPREAD for word in further):
        flags[SPREAD[0]] = str(served.processes)
    _refuse_given({*flags, "--model"}, further)
    return [*start, *(word for flag in flags.items() for word in flag), *device_flags, *further]


def _refuse_given(given: Collection[str], further: Sequence[str]) -> None:
    """Raise `SpeccError` for a further flag that specc gives itself, also cut short, as vLLM understands it."""
    for word in further:
        flag = word.split("=")[0].split(".")[0].replace("_", "-")
        if not flag.startswith("-"):
            continue
        if flag in OURS:
            raise SpeccError(f"`{word}` is not passed on to vLLM: {OURS[flag]}", code=Exit.USAGE)
        if name := next((name for name in sorted(given) if name.startswith(flag) and len(flag) > 2), None):
            hint = {"--host": "`--host` of `specc serve` before the `--`", "--port": "`--port` before the `--`"}.get(
                name, "what the checkpoint was built with decides it: change the spec and build"
            )
            raise SpeccError(f"`{word}` is given to vLLM already, as `{name}`", hint=hint, code=Exit.USAGE)


@contextmanager
def started(
    served: Served,
    line: list[str],
    *,
    host: str = HOST,
    port: int,
    device: str,
    variables: Mapping[str, str],
    seconds: float = START,
    waiting: Callable[[float, str], None] = lambda seconds, line: None,
) -> Generator[Server]:
    """Start the server of a command that `vllm_command` gave, and keep what it serves from `gc` meanwhile.

    Its log is the store's, or a temporary folder's where the store can only be read.
    """
    store = served.store
    with ExitStack() as held:
        hold = held.enter_context(store.lease())
        for digest in served.digests:
            hold(digest)
            store.path(digest)  # which raises if `gc` was there first
        if store.writable:
            home, log = store.work("serve", served.digests[-1]), store.log(f"serve-{served.digests[0][:SHORT]}-{port}")
        else:
            folder = Path(tempfile.mkdtemp(prefix="specc-serve-"))
            home, log = folder / "home", folder / "log"
        alone: Mapping[str, str] = {}
        if device == "cpu" and any(word.split("=")[0] in SPREAD for word in line):
            alone = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # vLLM would want a NUMA node for each process
        yield held.enter_context(
            serving(line, name=served.name, host=host, port=port, home=home, log=log, variables={**alone, **variables},
                    device=device, seconds=seconds, waiting=waiting)
        )  # fmt: skip
