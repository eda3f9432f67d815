"""`specc verify`: hash artifacts again, or build them again in an empty store and compare."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from specc.core.cli.options import ONLY, PROFILE, as_json, paint, print_json, words
from specc.core.cli.target import is_spec
from specc.core.contracts import Manifest
from specc.core.errors import Exit, SpeccError
from specc.core.execute import terminable
from specc.core.files import remove_tree
from specc.core.store import Store
from specc.core.verify import Finding, rebuild, rebuild_one, rehash

FILE = click.Path(path_type=Path, dir_okay=False)
_COLOURS = {"same": "green", "different": "red", "skipped": "yellow", "taken": "yellow"}
_WORDS = {"same": "the same", "taken": "not repeatable: answers of an endpoint, taken as they are"}


@click.command("verify", short_help="hash artifacts again, or build them again and compare")
@click.argument("target", metavar="ID|SPEC|DIR")
@click.option("--rebuild", "again", is_flag=True, help="Build again in an empty store and compare every digest.")
@click.option("--signature", is_flag=True, help="Check the signature of a directory that `specc export --sign` wrote.")
@click.option("--key", type=FILE, metavar="PUB", help="The public key (PEM) that the signature is checked with.")
@click.option("--chain", type=FILE, multiple=True, help="Or a certificate that the signer's is trusted by.")
@PROFILE
@ONLY
@as_json
def command(  # noqa: PLR0917 - click passes by name
    target: str,
    again: bool,
    signature: bool,
    key: Path | None,
    chain: tuple[Path, ...],
    profile: Path | None,
    only: tuple[str, ...],
    json: bool,
) -> int:
    """Check that an artifact (the start of its ID) or all of SPEC's are what was sealed.

    With --rebuild, an ID is built again from its inputs in the store, and a SPEC from its sources on. With
    --signature, an exported DIR is compared with what was signed.
    """
    if signature:
        return _signature(Path(target), key, chain, json=json)
    if key or chain:
        raise SpeccError("a key is for a signature", hint="`--signature` checks that of a directory", code=Exit.USAGE)
    if is_spec(target):
        return _spec(Path(target), profile, only, again=again, json=json)
    store = Store.locate(Path.cwd() / "spec.yaml")
    digest = store.resolve(target)
    manifest = store.manifest(digest)
    with _held(store, [digest, *(manifest.inputs.values() if again else ())]):
        if not again:
            return _report(rehash(store, {manifest.stage: digest}), verb="hashed", json=json)
        from specc.core.execute import Reporter

        return _rebuilt(store, lambda fresh: [rebuild_one(manifest, store, fresh, reporter=Reporter())], json=json)


def _signature(folder: Path, key: Path | None, chain: tuple[Path, ...], *, json: bool) -> int:
    """Compare a directory with its signature; return exit code 4 if anything differs."""
    from specc.core.publishing.signature import differences

    if (key is None) == (not chain):
        raise SpeccError("a signature is checked with a public key, or with certificates that are trusted",
                         hint="name one of `--key PUB` and `--chain CERTIFICATE`", code=Exit.USAGE)  # fmt: skip
    found = differences(folder, key=key, chain=chain)
    if json:
        print_json({"folder": str(folder), "differences": found})
    elif found:
        for line in found:
            click.echo(line)
        words(f"{folder} is not what was signed")
    else:
        words(f"every file of {folder} is the one that was signed")
    return Exit.DIFFERENCE if found else Exit.OK


def _spec(path: Path, profile: Path | None, only: tuple[str, ...], *, again: bool, json: bool) -> int:
    from specc.core.compiler import compile_spec
    from specc.core.execute import Reporter, machine_name
    from specc.core.plan import decide

    compiled = compile_spec(path, trust="locked", machine=machine_name(), only=only, profile=profile)
    plan, store = compiled.plan, compiled.store
    locked = compiled.lock.results.get(plan.numerics, {}) if again else {}
    found = [item for item in decide(plan, _Named(store)) if item.action != "stream"]
    digests = {item.stage.name: item.digest or locked.get(item.stage.name, "") for item in found}
    if missing := [name for name, digest in digests.items() if not digest]:
        raise SpeccError(
            f"there is nothing to verify for {', '.join(f'`{name}`' for name in missing)}: never built on this machine",
            where=str(path),
            hint=f"`specc build {path}` builds what is missing",
        )
    with _held(store, digests.values()):
        if not again:
            return _report(rehash(store, digests), verb="hashed", json=json)
        values, files = compiled.values, compiled.resolved.files
        return _rebuilt(
            store,
            lambda fresh: rebuild(plan, digests, store, fresh, values=values, files=files, reporter=Reporter()),
            json=json,
        )


@dataclass(frozen=True, slots=True)
class _Named:
    """A store in which an artifact is there if it has a name, whole or not: a damaged one is what is looked for."""

    store: Store

    def find(self, stage: str, key: str) -> str | None:
        return self.store.gave(stage, key)

    def manifest(self, digest: str) -> Manifest:
        return self.store.manifest(digest)

    def last(self, name: str, stage: str) -> Manifest | None:
        return self.store.last(name, stage)


@contextmanager
def _held(store: Store, digests: Iterable[str]) -> Generator[None]:
    """Keep artifacts from `gc`, and end in good order when the user gives up."""
    with terminable(), store.lease() as hold:
        for digest in digests:
            hold(digest)
        yield


def _rebuilt(store: Store, make: Callable[[Store], Iterable[Finding]], *, json: bool) -> int:
    """Build in a store of its own and report; what was built stays, for a person to look at, if anything differs."""
    with store.scratch() as fresh:
        found = list[Finding]()
        try:
            found += make(fresh)
        finally:
            differs = any(finding.state == "different" for finding in found)
            if not differs:
                remove_tree(fresh.root)
    return _report(found, verb="built", json=json, kept=fresh.root if differs else None)


def _report(found: Iterable[Finding], *, verb: str, json: bool, kept: Path | None = None) -> int:
    """Print the findings; return exit code 4 if anything differs."""
    rows: list[Finding] = []
    for finding in found:
        rows.append(finding)
        if json:
            continue
        state = _WORDS.get(finding.state, finding.state)
        click.echo(f"{finding.stage:<14} sha256:{finding.digest[:12]}…  {paint(state, _COLOURS[finding.state])}")
        if finding.rebuilt and finding.rebuilt != finding.digest:
            click.echo(f"  built again it is sha256:{finding.rebuilt[:12]}…")
        for line in finding.differences:
            click.echo(f"  {line}")
    wrong = [finding for finding in rows if finding.state == "different"]
    if json:
        print_json({"artifacts": [asdict(finding) for finding in rows], "kept": str(kept) if kept else None})
    elif wrong:
        skipped = sum(finding.state == "skipped" for finding in rows)
        rest = f", {skipped} made of what differs and not built" if skipped else ""
        words(f"{len(wrong)} of {len(rows)} artifacts {verb} again came out different{rest}")
        if kept:
            words(f"what was built again is in {kept}")
        elif verb == "hashed":
            words(f"\nhint: `specc build --force --stage {wrong[0].stage} SPEC` builds it again in its place")
    else:
        count = sum(finding.state == "same" for finding in rows)
        words(f"{count} artifact{'s' * (count != 1)} {verb} again: every bit is the same")
    return Exit.DIFFERENCE if wrong else Exit.OK
