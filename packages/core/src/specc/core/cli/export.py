"""`specc export`: a checkpoint as a plain directory, signed if asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, Unpack

import click

from specc.core.cli.options import ONLY, as_json, print_json, words
from specc.core.cli.target import checkpoint_of
from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.files import entries
from specc.core.publishing.directory import export
from specc.core.store import Store

FILE = click.Path(path_type=Path, dir_okay=False)
OPTIONS = (
    click.option("--verifier", metavar="ID|PATH",
                 help="What `config.json` names as the verifier, in place of what the spec named."),
    click.option("--head", is_flag=True, help="Of a draft inside its verifier (MTP), the draft alone."),
    click.option("--sign", "key", type=FILE, metavar="KEY",
                 help="Sign with this private key (PEM, elliptic curve)."),
    click.option("--certificate", type=FILE, help="The signing key's certificate (PEM)."),
    click.option("--chain", type=FILE, multiple=True,
                 help="A certificate between that one and the root; may be repeated."),
)  # fmt: skip


class How(TypedDict):
    """What a user may say of an exported directory."""

    verifier: str | None
    head: bool
    key: Path | None
    certificate: Path | None
    chain: tuple[Path, ...]


def how_to_export(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of `How`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command("export", short_help="a checkpoint as a plain directory for vLLM, speculators or a hub")
@click.argument("target", metavar="ID|SPEC")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="A new directory, or an empty one.")
@how_to_export
@ONLY
@as_json
def command(target: str, to: Path, only: tuple[str, ...], json: bool, **how: Unpack[How]) -> int:
    """Write a checkpoint by (the start of) its ID, or the last one of SPEC, to a directory of its own.

    The card in it states the evaluation, if there is one. What vLLM serves of an MTP head is its whole verifier.
    """
    store, checkpoint = checkpoint_of(target, only)
    evaluation = exported(store, checkpoint, to, how)
    if json:
        print_json(
            {
                "name": checkpoint.params["name"],
                "checkpoint": f"sha256:{checkpoint.digest}",
                "evaluation": f"sha256:{evaluation.digest}" if evaluation else None,
                "folder": str(to),
                "signed": how["key"] is not None,
                "files": [{"path": one.path, "size": one.size, "sha256": one.sha256} for one in entries(to)],
            }
        )
    else:
        click.echo(str(to))
    if evaluation is None:
        words("no evaluation of it is in the store, and the card states none: `specc build` of its spec makes one")
    return Exit.OK


def exported(store: Store, checkpoint: Manifest, to: Path, how: How) -> Manifest | None:
    """Export as a user wants it, signed where there is a key; return the evaluation that the card states."""
    key, certificate, chain = how["key"], how["certificate"], how["chain"]
    if key is None and (certificate or chain):
        raise SpeccError("a certificate signs nothing by itself", hint="`--sign KEY` names its private key",
                         code=Exit.USAGE)  # fmt: skip

    def finish(folder: Path) -> None:
        if key is not None:
            from specc.core.publishing.signature import sign

            sign(folder, key, certificate=certificate, chain=chain)

    return export(store, checkpoint, to, verifier=how["verifier"], head=how["head"], finish=finish)
