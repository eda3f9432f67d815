"""`specc evaluate --load`: a server with the speculator and one without it, driven by GuideLLM."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from specc.core.cli.options import columns, number, print_json, words
from specc.core.cli.serve import find, refuse_unserved
from specc.core.cli.target import is_spec
from specc.core.errors import Exit, SpeccError
from specc.core.execute import terminable
from specc.core.execute.machine import detect_class
from specc.core.measure.load import MAX_TOKENS, SIDES, drive, texts
from specc.core.measure.prompts import name_of


def load(
    target: str,
    *,
    profile: str,
    to: Path | None,
    seconds: int,
    streams: Sequence[int],
    variables: Mapping[str, str],
    timeout: float,
    prompts: Sequence[Path] = (),
    max_tokens: int | None = None,
    only: Collection[str] = (),
    json: bool = False,
) -> int:
    """Drive servers of a checkpoint and print what came out; of a spec, over its `evaluate.prompts` by default."""
    if to is None:
        raise SpeccError("the reports of a load need a place", hint="`--to DIR` names a new directory", code=Exit.USAGE)
    served = find(target, only)
    refuse_unserved(served, detect_class()[0])
    own, tokens = _of_spec(Path(target), only) if is_spec(target) else ([], MAX_TOKENS)
    chosen = [text for path in prompts for text in texts(path)] or own
    if not chosen:
        words("no prompts are named, and GuideLLM makes text up: what is accepted of it says little")
    with terminable():
        found = drive(
            served,
            profile=profile,
            seconds=seconds,
            folder=to,
            prompts=chosen,
            max_tokens=max_tokens or tokens,
            streams=streams,
            variables=variables,
            timeout=timeout,
            say=words,
        )
    if json:
        print_json({**found, "folder": str(to)})
        return Exit.OK
    for line in table(found):
        click.echo(line)
    words(f"GuideLLM's own reports and `load.json` are in {to}")
    return Exit.OK


def table(found: Mapping[str, Any]) -> list[str]:
    """Return a load's steps as a table, those with the speculator first."""
    rows = [["", "load", "answered", "requests/s", "output tokens/s", "first token p50 ms", "between tokens p50 ms"]]
    for side in SIDES:
        for step in found[side]["steps"]:
            size = step["at_once"] or (step["rate"] and number(step["rate"], 2))
            rows.append([
                side.replace("_", " "),
                step["strategy"] + (f"@{size}" if size else ""),
                str(step["requests"]["successful"]),
                number(step["requests_per_second"], 2),
                number(step["output_tokens_per_second"], 1),
                number(step["time_to_first_token_ms"]["p50"], 1),
                number(step["inter_token_latency_ms"]["p50"], 1),
            ])  # fmt: skip
    length = found[SIDES[0]]["speculation"]["mean_acceptance_length"]
    return [*columns(rows), f"mean acceptance length {number(length)}"]


def _of_spec(path: Path, only: Collection[str]) -> tuple[list[str], int]:
    """Return the prompts of a spec's evaluation, and the longest answer that it asks for.

    Those of data sets are in the artifact `prompts`; raises `SpeccError` if that is not built.
    """
    from specc.core.compiler import compile_spec
    from specc.core.execute import machine_name
    from specc.core.plan import decide

    compiled = compile_spec(path, machine=machine_name(), only=tuple(only))
    evaluate: Mapping[str, Any] | None = compiled.values.get("evaluate")
    if evaluate is None:
        return [], MAX_TOKENS
    fetched = next(
        (item.digest for item in decide(compiled.plan, compiled.store) if item.stage.name == "prompts"), None
    )
    found = list[str]()
    for item in evaluate["prompts"]:
        if "file" in item:
            found += texts(compiled.resolved.files[item["file"]], item)
        elif fetched:
            found += texts(compiled.store.path(fetched) / name_of(item), item)
        else:
            raise SpeccError(f"the prompts of the data set `{item['dataset']}` are not fetched yet",
                             hint=f"`specc build --stage prompts {path}` fetches them")  # fmt: skip
    return found, int(evaluate["max_tokens"])
