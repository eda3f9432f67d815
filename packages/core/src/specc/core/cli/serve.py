"""`specc serve`: the vLLM command that serves a speculator with its verifier."""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from specc.core.algorithms import algorithm
from specc.core.cli.options import ONLY, as_json, print_json, words
from specc.core.cli.target import is_spec, named
from specc.core.contracts import Manifest
from specc.core.engines import architecture
from specc.core.errors import Exit, SpeccError
from specc.core.execute.machine import detect_class
from specc.core.store import Store

PORT: Final = 8000
HOST: Final = "127.0.0.1"
"""Nobody else's machine can reach the server unless its owner changes this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A checkpoint in the store and the verifier it was made for, both by path."""

    name: str
    checkpoint: Manifest
    speculator: Path
    verifier: Path


@click.command("serve", short_help="the command that serves a speculator in vLLM")
@click.argument("target", metavar="ID|SPEC")
@click.option("--dry-run", is_flag=True, help="Print the command and do not run it.")
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, help="Port of the server.")
@ONLY
@as_json
def command(target: str, dry_run: bool, port: int, only: tuple[str, ...], json: bool) -> int:
    """Print the vLLM command for a checkpoint by (the start of) its ID, or for the last one of SPEC."""
    served = find(target, only)
    device, _ = detect_class()
    _refuse_unserved(served, device)
    line = vllm_command(served, device=device, port=port)
    if not dry_run:
        raise SpeccError(
            "running the server is not in this release",
            hint=f"`specc serve {shlex.quote(target)} --dry-run` prints the command to run",
            code=Exit.USAGE,
        )
    if json:
        print_json(
            {
                "name": served.name,
                "command": line,
                "speculator": str(served.speculator),
                "verifier": str(served.verifier),
                "url": f"http://{HOST}:{port}/v1",
            }
        )
    else:
        click.echo(shlex.join(line))
    return Exit.OK


def find(target: str, only: Collection[str] = ()) -> Served:
    """Return the checkpoint that `target` means, a spec's file or the start of an id.

    Raises `SpeccError` if it means none, or an artifact of another stage, or if the verifier's artifact is gone.
    """
    if is_spec(target):
        name, store = named(Path(target), only)
        checkpoint = store.last(name, "checkpoint")
        if checkpoint is None:
            raise SpeccError(f"`{name}` was never built here", where=str(store.root),
                             hint=f"`specc build {target}` builds it")  # fmt: skip
    else:
        store = Store.locate(Path.cwd() / "spec.yaml")
        checkpoint = store.manifest(store.resolve(target))
        if checkpoint.stage != "checkpoint":
            raise SpeccError(
                f"`{target}` is an artifact of the stage `{checkpoint.stage}`, and a server needs a checkpoint",
                hint="`specc status SPEC` lists a spec's artifacts",
            )
    name = str(checkpoint.params["name"])
    speculator, verifier = store.path(checkpoint.digest), store.path(checkpoint.inputs["verifier"])
    if algorithm(checkpoint.params["draft"]["algorithm"]).stitched:
        stitched = store.last(name, "stitched")
        if stitched is None or stitched.inputs["checkpoint"] != checkpoint.digest:
            raise SpeccError(f"the verifier that `{name}` is stitched into is not here", where=str(store.root),
                             hint="`specc build SPEC` makes it")  # fmt: skip
        speculator = verifier = store.path(stitched.digest)
    return Served(name=name, checkpoint=checkpoint, speculator=speculator, verifier=verifier)


def _refuse_unserved(served: Served, device: str) -> None:
    """Raise `SpeccError` for a draft that vLLM does not run; where it does elsewhere, only say so."""
    draft = served.checkpoint.params["draft"]
    row = algorithm(draft["algorithm"])
    devices = row.vllm(draft)
    if not devices:
        raise SpeccError(f"vLLM does not run this {row.title} draft",
                         hint="`specc build` evaluates it with specc's own decoder; to serve one, choose another"
                              " algorithm")  # fmt: skip
    if device not in devices:
        words(
            f"warning: vLLM runs this {row.title} draft on `{devices[0]}`, and not rightly or not at all on `{device}`"
        )


def vllm_command(served: Served, *, device: str, port: int) -> list[str]:
    """Return the words of the command: an OpenAI server on this machine alone.

    Both paths are given, since the speculator's own config names its verifier by a hub id or a logical name.
    """
    params = served.checkpoint.params
    speculative: dict[str, Any] = {
        **algorithm(params["draft"]["algorithm"]).serving,
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
    flags = {
        "--served-model-name": served.name,
        "--dtype": str(params["verifier"]["dtype"]),
        "--speculative-config": jsonlib.dumps(speculative, sort_keys=True),
        "--host": HOST,
        "--port": str(port),
    }
    if (other := architecture(params["verifier"]["config"])) != {}:
        flags["--hf-overrides"] = jsonlib.dumps(other["hf_overrides"])
    return [*start, *(word for flag in flags.items() for word in flag), *device_flags]
