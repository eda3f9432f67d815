"""`specc export`: a checkpoint as a plain directory, signed if asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from specc.core.cli.options import ONLY, as_json, print_json, words
from specc.core.cli.target import checkpoint_of
from specc.core.errors import Exit, SpeccError
from specc.core.files import entries
from specc.core.publish import export

FILE = click.Path(path_type=Path, dir_okay=False)
VERIFIER = click.option(
    "--verifier", metavar="ID|PATH", help="What `config.json` names as the verifier, in place of what the spec named."
)
HEAD = click.option("--head", is_flag=True, help="Of a draft inside its verifier (MTP), the draft alone.")
SIGN = click.option("--sign", "key", type=FILE, metavar="KEY", help="Sign with this private key (PEM, elliptic curve).")
CERTIFICATE = click.option("--certificate", type=FILE, help="The signing key's certificate (PEM).")
CHAIN = click.option(
    "--chain", type=FILE, multiple=True, help="A certificate between that one and the root; may be repeated."
)


@click.command("export", short_help="a checkpoint as a plain directory for vLLM, speculators or a hub")
@click.argument("target", metavar="ID|SPEC")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="A new directory, or an empty one.")
@VERIFIER
@HEAD
@SIGN
@CERTIFICATE
@CHAIN
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    target: str,
    to: Path,
    verifier: str | None,
    head: bool,
    key: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    only: tuple[str, ...],
    json: bool,
) -> int:
    """Write a checkpoint by (the start of) its ID, or the last one of SPEC, to a directory of its own.

    The card in it states the evaluation, if there is one. What vLLM serves of an MTP head is its whole verifier.
    """
    store, checkpoint = checkpoint_of(target, only)
    evaluation = export(store, checkpoint, to, verifier=verifier, head=head, finish=signer(key, certificate, chain))
    if json:
        print_json(
            {
                "name": checkpoint.params["name"],
                "checkpoint": f"sha256:{checkpoint.digest}",
                "evaluation": f"sha256:{evaluation.digest}" if evaluation else None,
                "folder": str(to),
                "signed": key is not None,
                "files": [{"path": one.path, "size": one.size, "sha256": one.sha256} for one in entries(to)],
            }
        )
    else:
        click.echo(str(to))
    if evaluation is None:
        words("no evaluation of it is in the store, and the card states none: `specc build` of its spec makes one")
    return Exit.OK


def signer(key: Path | None, certificate: Path | None, chain: tuple[Path, ...]) -> Callable[[Path], None]:
    """Return what signs a finished directory, or leaves it as it is without a key."""
    if key is None:
        if certificate or chain:
            raise SpeccError("a certificate signs nothing by itself", hint="`--sign KEY` names its private key",
                             code=Exit.USAGE)  # fmt: skip
        return lambda folder: None
    from specc.core.signature import sign

    return lambda folder: sign(folder, key, certificate=certificate, chain=chain)
