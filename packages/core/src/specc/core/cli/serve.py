"""`specc serve`: a speculator and its verifier in vLLM, or the command that serves them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection
from typing import Final

import click

from specc.core.algorithms import algorithm
from specc.core.cli.options import ONLY, as_json, print_json, words
from specc.core.cli.target import checkpoint_of
from specc.core.errors import Exit, SpeccError
from specc.core.execute import terminable
from specc.core.execute.machine import detect_class
from specc.core.serving.served import HOST, Served, served_of, started, vllm_command
from specc.core.serving.server import START, free, reached

PORT: Final = 8000
QUIET: Final = 15.0
"""Seconds between two words on a server that loads."""


def variables_of(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Return `{name: value}` of `NAME=VALUE` and of `NAME`, whose value is the caller's."""
    found = dict[str, str]()
    for item in given:
        name, equals, value = item.partition("=")
        if not equals and name not in os.environ:
            raise SpeccError(f"`--env {name}` names a variable that is not set", hint=f"`--env {name}=VALUE` sets it",
                             code=Exit.USAGE)  # fmt: skip
        found[name] = value if equals else os.environ[name]
    return found


ENVIRONMENT = click.option(
    "--env",
    "variables",
    multiple=True,
    metavar="NAME[=VALUE]",
    callback=variables_of,
    help="Give the server a variable, by value or as it is set here; no other is passed on. May be repeated.",
)
TIMEOUT = click.option(
    "--timeout",
    type=click.IntRange(1),
    default=START,
    show_default=True,
    metavar="SECONDS",
    help="Give up if the server is not ready by then.",
)


@click.command("serve", short_help="serve a speculator in vLLM, or print the command")
@click.argument("target", metavar="ID|SPEC")
@click.argument("further", metavar="[-- VLLM_FLAGS...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--dry-run", is_flag=True, help="Print the command and do not run it.")
@click.option("--host", default=HOST, show_default=True, help="Address to listen on; `0.0.0.0` is every one.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Port to listen on; 0 takes any."
)
@click.option("--without-speculator", is_flag=True, help="Serve the verifier alone, to compare with.")
@ENVIRONMENT
@TIMEOUT
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    target: str,
    further: tuple[str, ...],
    dry_run: bool,
    host: str,
    port: int,
    without_speculator: bool,
    variables: dict[str, str],
    timeout: float,
    only: tuple[str, ...],
    json: bool,
) -> int:
    """Serve a checkpoint by (the start of) its ID, or the last one of SPEC, with its verifier in vLLM.

    The server has OpenAI's interface, listens on this machine alone, and ends with this command, however that ends.
    Flags of vLLM's own go after `--`.
    """
    served = find(target, only)
    device, _ = detect_class()
    if not without_speculator:
        refuse_unserved(served, device)
    port = port or free(host, 0)
    line = vllm_command(served, device=device, host=host, port=port, speculate=not without_speculator, further=further)
    said = {
        "name": served.name,
        "command": line,
        "speculator": None if without_speculator else str(served.speculator),
        "verifier": str(served.verifier),
        "url": f"http://{reached(host)}:{port}/v1",
    }
    if dry_run:
        print_json(said) if json else click.echo(shlex.join(line))
        return Exit.OK
    free(host, port)
    if host != HOST:
        words(f"warning: who reaches `{host}` of this machine can use the server, unless vLLM is given an API key"
              " (`--env VLLM_API_KEY`)")  # fmt: skip
    try:
        with terminable(), started(served, line, host=host, port=port, device=device, variables=variables,
                                   seconds=timeout, waiting=_Patience()) as server:  # fmt: skip
            if json:
                print_json({**said, "log": str(server.log)})
            else:
                click.echo(said["url"])
            words(f"serving `{served.name}`; Ctrl-C ends it, its log is {server.log}")
            sys.stdout.flush()
            server.wait()
    except KeyboardInterrupt:
        words("the server is stopped")
    return Exit.INTERRUPTED


class _Patience:
    """Says now and then that the server is still loading, and what it said last."""

    def __init__(self) -> None:
        self._next = QUIET

    def __call__(self, seconds: float, line: str) -> None:
        if seconds >= self._next:
            self._next += QUIET
            words(f"vLLM is loading, {seconds:.0f} s: {line[:160]}")


def find(target: str, only: Collection[str] = ()) -> Served:
    """Return the checkpoint that `target` means, a spec's file or the start of an id, as it is served."""
    return served_of(*checkpoint_of(target, only))


def refuse_unserved(served: Served, device: str) -> None:
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
