"""`specc convert`: a draft of another repository becomes a speculator, or a trained head a part of its verifier."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Any

import click

from specc.core import lock as locks
from specc.core.cli.options import as_json, print_json, words
from specc.core.conversion import Conversion, compile_conversion
from specc.core.errors import Exit, SpeccError
from specc.core.execute import Reporter, build, terminable
from specc.core.files import copy_files, directory_digest, entries, new_folder, storage_error
from specc.core.layouts import LAYOUTS
from specc.core.plan import Decision
from specc.core.store.manifests import SHORT
from specc.core.store.place import absolute


@click.command("convert", short_help="bring in a draft of another repository")
@click.argument("source")
@click.option("--verifier", required=True, help="Folder, `.gguf` file or hub id of the model that it drafts for.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write: a new or an empty one.")
@click.option("--from", "layout", type=click.Choice(list(LAYOUTS)), help="Layout of SOURCE (default: found).")
@click.option("--revision", help="Branch, tag or commit of SOURCE on a hub (default: main).")
@click.option("--verifier-revision", help="The same of the verifier.")
@click.option("--speculative-tokens", "tokens", type=click.IntRange(1, 64),
              help="Tokens that vLLM drafts at a time (default: the source's own).")  # fmt: skip
@click.option("--stitch", is_flag=True, help="Put an MTP head into a copy of its verifier, and write that.")
@click.option("--offline", is_flag=True, help="Ask no hub; fail when something would have to be fetched.")
@as_json
def command(  # noqa: PLR0917 - click passes by name
    source: str,
    verifier: str,
    out: Path,
    layout: str | None,
    revision: str | None,
    verifier_revision: str | None,
    tokens: int | None,
    stitch: bool,
    offline: bool,
    json: bool,
) -> int:
    """Convert SOURCE, a folder or a hub id with a draft in the layout of another repository.

    What is written is in the speculators format where that has a word for it, and else as vLLM serves it. Beside it
    stands a lock, OUT.lock.json, which pins what it was made of.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    place = absolute(out)
    lock = place.with_name(f"{place.name}.lock.json")
    made = compile_conversion(source, verifier_text=verifier, lock=lock, named=layout, revision=revision,
                              verifier_revision=verifier_revision, tokens=tokens, stitch=stitch)  # fmt: skip
    last = made.plan.last
    words(f"{made.values['source']['name']}: {made.title} (layout `{made.values['source']['layout']}`)")
    with terminable(), made.store.lease() as hold:
        _place(out, made, last)
        done = build(made.plan, made.store, values=made.values, files=made.files, reporter=Reporter(), hold=hold)
        digests = {name: decision.digest for name, decision in done.items() if decision.digest}
        found = made.found(digests)
        artifact = made.store.path(digests[last])
        written = _copy(artifact, out)
    try:
        locks.write(lock, {"": found})
    except OSError as error:
        raise storage_error(error, lock.parent, "name another folder") from error
    said = _said(made, done, last)
    if json:
        print_json({"out": str(out), "written": written, "lock": str(out.parent / lock.name), **said})
        return Exit.OK
    built = any(decision.due for decision in done.values())
    words(f"{'converted' if built else 'nothing to do'}: {last} sha256:{digests[last]}")
    for line in _lines(made, said):
        words(f"  {line}")
    words(f"  serve it: specc serve {digests[last][:SHORT]}")
    words(f"  `specc gc` keeps it as `{made.ref}`, until `specc gc --forget {made.ref}`")
    click.echo(str(out))
    return Exit.OK


def _place(out: Path, made: Conversion, last: str) -> None:
    """Raise `SpeccError` if there is anything in a folder that an earlier conversion did not write there."""
    if Path.cwd().is_relative_to(absolute(out)):
        raise SpeccError("the working directory cannot be replaced", where=str(out), hint="name a folder in it")
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise SpeccError("this is a file, not a folder", where=str(out), hint="name another folder")
    if any(out.iterdir()) and not _is_ours(out, made, last):
        raise SpeccError("the folder is not empty", where=str(out), hint="name a new folder, or an empty one")


def _is_ours(out: Path, made: Conversion, last: str) -> bool:
    """Tell whether a folder holds just what its lock says came out of this conversion."""
    known = made.lock.results.get(made.plan.numerics, {}).get(last)
    return known is not None and directory_digest(entries(out)) == known


def _copy(artifact: Path, out: Path) -> bool:
    """Copy an artifact to a folder, whole or not at all; return whether it was not there yet."""
    if out.is_dir() and any(out.iterdir()):
        return False
    with new_folder(out) as folder:
        copy_files(artifact, folder)
    return True


def _said(made: Conversion, done: dict[str, Decision], last: str) -> dict[str, Any]:
    """Return what came out, as data."""
    report = jsonlib.loads((made.store.path(done["converted"].digest or "") / "conversion.json").read_text())
    found: dict[str, Any] = {
        "artifacts": {name: f"sha256:{decision.digest}" for name, decision in done.items()},
        "ref": made.ref,
        "layout": report["layout"],
        "algorithm": made.values["draft"]["algorithm"],
        "speculators": LAYOUTS[report["layout"]].speculators,
        "taken": len(report["taken"]),
        "filled": report["filled"],
        "left_out": report["left_out"],
        "speculative_tokens": made.values["export"]["speculative_tokens"],
    }
    if last == "stitched":
        changes = jsonlib.loads((made.store.path(done[last].digest or "") / "stitched.json").read_text())
        found["stitched"] = {key: changes[key] for key in ("changed", "added", "files")}
    return found


def _lines(made: Conversion, said: dict[str, Any]) -> list[str]:
    """Say what came out, a line each."""
    lines = [f"{said['taken']} tensors taken from the source"]
    lines += [f"`{name}` made of {what}" for name, what in said["filled"].items()]
    whys = dict.fromkeys(said["left_out"].values())
    for why in whys:
        names = [name for name, reason in said["left_out"].items() if reason == why]
        lines.append(f"{'`' + names[0] + '`' if len(names) == 1 else f'{len(names)} tensors'} left out: {why}")
    if not said["speculators"]:
        lines.append("not in the speculators format, which has no such draft that vLLM reads: the layout that vLLM"
                     f" serves with `\"method\": \"{said['algorithm']}\"`")  # fmt: skip
    if "stitched" in said:
        changed, added = len(said["stitched"]["changed"]), len(said["stitched"]["added"])
        lines.append(f"{changed} tensors of the verifier changed, {added} added; `stitched.json` has each one")
    return lines
