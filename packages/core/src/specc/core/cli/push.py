"""`specc push`: a checkpoint on a model hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Unpack

import click

from specc.core.cli.export import How, exported, how_to_export
from specc.core.cli.options import ONLY, as_json, print_json, words
from specc.core.cli.target import checkpoint_of
from specc.core.errors import Exit
from specc.core.execute import terminable
from specc.core.publishing.push import push


@click.command("push", short_help="a checkpoint to a model hub")
@click.argument("target", metavar="ID|SPEC")
@click.argument("repo", metavar="REPO")
@click.option("--private", is_flag=True, help="If the repository is made now, nobody else sees it.")
@click.option("--revision", metavar="BRANCH", help="The branch to commit to; made if it is not there.")
@click.option("--message", help="The commit's message; by default the speculator's name and digest.")
@how_to_export
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    target: str,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    only: tuple[str, ...],
    json: bool,
    **how: Unpack[How],
) -> int:
    """Export a checkpoint by (the start of) its ID, or the last one of SPEC, and commit it to REPO (`OWNER/NAME`).

    It is what `specc export` writes, in one commit. After a cut connection the same command sends what is missing.
    """
    store, checkpoint = checkpoint_of(target, only)
    name = str(checkpoint.params["name"])
    with terminable(), tempfile.TemporaryDirectory(prefix="specc-push-") as temporary:
        folder = Path(temporary) / name.replace("/", "-")
        evaluation = exported(store, checkpoint, folder, how)
        url = push(folder, repo, private=private, revision=revision,
                   message=message or f"{name}, sha256:{checkpoint.digest}")  # fmt: skip
    if json:
        print_json({"name": name, "repo": repo, "commit": url, "checkpoint": f"sha256:{checkpoint.digest}",
                    "evaluation": f"sha256:{evaluation.digest}" if evaluation else None})  # fmt: skip
    else:
        click.echo(url)
    if evaluation is None:
        words("no evaluation of it is in the store, and the card states none")
    return Exit.OK
