"""`specc explain`: why a stage rebuilds, where a value came from and what depends on it, what an error means."""

from __future__ import annotations

import difflib
import json as jsonlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from specc.core.cli.decisions import Step, as_data, change_words, reason
from specc.core.cli.options import ONLY, PROFILE, as_json, human, print_json
from specc.core.cli.target import is_spec
from specc.core.compiler import Compiled, compile_spec, estimates
from specc.core.errors import Exit, SpeccError
from specc.core.files import flatten
from specc.core.language.explanations import EXPLANATIONS, page
from specc.core.language.schema import Schema, fields, published_schema
from specc.core.language.words import listed, words
from specc.core.plan import Decision, Plan, decide


@click.command("explain", short_help="why a stage rebuilds, where a value came from, what an error means")
@click.argument("target", metavar="[SPEC|ID]", required=False)
@click.argument("what", metavar="[STAGE|FIELD]", required=False)
@PROFILE
@ONLY
@as_json
def command(target: str | None, what: str | None, profile: Path | None, only: tuple[str, ...], json: bool) -> int:
    """Explain a stage or a field of SPEC, or the error with an ID such as `E0231`; with neither, list all errors.

    A stage's page says why it would be built, down to the value and its line. A field's page says its value, where that
    came from, its default, and the stages whose results depend on it. A field may be shortened where only one is meant:
    `train.learning_rate`.
    """
    if target is None:
        return _errors(json=json)
    if what is None:
        return _error(target, json=json)
    compiled = compile_spec(Path(target), only=only, profile=profile)
    plan = compiled.plan
    if what in {stage.name for stage in plan.stages}:
        return _stage(compiled, plan, what, json=json)
    found = _field(compiled, plan, _resolve(compiled, plan, what))
    if json:
        print_json(found)
    else:
        click.echo(_page(found))
    return Exit.OK


def _errors(*, json: bool) -> int:
    """Print every error's id and sentence."""
    if json:
        print_json({"errors": [{"id": name, "sentence": sentence} for name, sentence in EXPLANATIONS.items()]})
    else:
        click.echo("\n".join(f"{name}  {_sentence(sentence)}" for name, sentence in EXPLANATIONS.items()))
    return Exit.OK


def _error(identity: str, *, json: bool) -> int:
    if identity not in EXPLANATIONS:
        if is_spec(identity):
            raise SpeccError(
                f"what of `{identity}` is to be explained",
                hint=f"name a stage or a field: `specc explain {identity} draft`",
                code=Exit.USAGE,
            )
        near = difflib.get_close_matches(identity.upper(), EXPLANATIONS, n=1)
        raise SpeccError(f"no error has the id `{identity}`",
                         hint=f"did you mean `{near[0]}`?" if near else "`specc explain` lists all ids")  # fmt: skip
    found = page(identity)
    if json:
        print_json(asdict(found))
    else:
        click.echo(
            f"{identity}: {_sentence(found.sentence)}\n  why      {_sentence(found.why)}\n"
            f"  instead  {_sentence(found.instead)}\n\n{found.file}:\n\n{indent(found.example, '  ')}\n"
            f"what specc says of it:\n\n{indent(found.message, '  ')}", nl=False)  # fmt: skip
    return Exit.OK


def _sentence(text: str) -> str:
    """Return an explanation as it is printed: a single sentence has no full stop."""
    return text if ". " in text else text.removesuffix(".")


def _stage(compiled: Compiled, plan: Plan, name: str, *, json: bool) -> int:
    """Print why a stage is what it is, and why the inputs are that it waits for."""
    decisions = {decision.stage.name: decision for decision in decide(plan, compiled.store)}
    if json:
        found = estimates([compiled])[decisions[name].stage.recipe]
        print_json(as_data([Step(compiled, decisions[name], found)])[0])
        return Exit.OK
    decision = decisions[name]
    if decision.action == "hit":
        size = human(compiled.store.manifest(decision.digest or "").size)
        click.echo(f"{name}: nothing in its key has changed; its artifact sha256:{decision.digest} has {size}")
    elif decision.action == "stream":
        click.echo(f"{name}: {reason(compiled, decision)}")
    else:
        for line in _why(compiled, decisions, decision):
            click.echo(line)
    return Exit.OK


def _why(
    compiled: Compiled, decisions: Mapping[str, Decision], decision: Decision, depth: int = 0, seen: Sequence[str] = ()
) -> Iterator[str]:
    """Yield a line for each reason, those of the inputs that are to be built below them."""
    indent = "  " * depth
    yield (
        f"{indent}{decision.stage.name}: " + {"build": "to be built", "build?": "perhaps to be built"}[decision.action]
    )
    own = [change_words(compiled, change) for change in decision.changes]
    for line in own or ([] if decision.waits_for else [reason(compiled, decision)]):
        yield f"{indent}  {line}"
    for name in decision.waits_for:
        if name in seen:
            yield f"{indent}  {name}: see above"
            continue
        seen = (*seen, name)
        yield from _why(compiled, decisions, decisions[name], depth + 1, seen)


def _resolve(compiled: Compiled, plan: Plan, asked: str) -> str:
    """Return the dotted path of a field or a section that is meant; raises `SpeccError` if that is none, or several."""
    values = flatten(compiled.values)
    known = {*values, *(path.rsplit(".", end)[0] for path in values for end in range(1, path.count(".") + 1))}
    if asked in known or _item(compiled.values, asked) is not None:
        return asked
    wanted = asked.split(".")
    meant = sorted(path for path in known if _within(wanted, path.split(".")))
    shortest = [path for path in meant if not any(path.startswith(other + ".") for other in meant)]
    if len(shortest) == 1:
        return shortest[0]
    if shortest:
        raise SpeccError(
            f"`{asked}` may mean {len(shortest)} fields", note="\n  ".join(shortest), hint="give the path whole"
        )
    stages = [stage.name for stage in plan.stages]
    last = {path.rpartition(".")[2]: path for path in sorted(known, reverse=True)} | {name: name for name in stages}
    near = difflib.get_close_matches(wanted[-1], last, n=1, cutoff=0.5)
    raise SpeccError(
        f"{compiled.path} has no stage and no field `{asked}`",
        hint=f"did you mean `{last[near[0]]}`?" if near else f"its stages are {listed(stages)}",
    )


def _within(wanted: Sequence[str], path: Sequence[str]) -> bool:
    """Tell whether `path` ends as `wanted` does and has its other parts in their order."""
    rest = iter(path)
    return bool(wanted) and wanted[-1] == path[-1] and all(part in rest for part in wanted)


def _item(tree: Any, path: str) -> Any:
    """Return the value at a dotted path that may count items of lists, None if there is none."""
    for part in path.split("."):
        if isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        elif isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        else:
            return None
    return tree


def _field(compiled: Compiled, plan: Plan, path: str) -> dict[str, Any]:
    """Return all that is known of a field or a section."""
    rule = _rule(path)
    value = _item(compiled.values, path)
    inner = flatten({path: value}) if isinstance(value, Mapping) else {}
    read_by = [stage.name for stage in plan.stages if stage.row.reads(path)]
    after = set(read_by)
    for stage in plan.stages:
        if not after.isdisjoint(stage.row.inputs.values()):
            after.add(stage.name)
    return {
        "field": path,
        "value": value,
        "origin": None if inner else _origin(compiled, path),
        "fields": {name: {"value": item, "origin": _origin(compiled, name)} for name, item in inner.items()},
        "description": rule.get("description"),
        "takes": words(rule) if rule and not inner else None,
        "default": rule.get("default"),
        "derives": sorted(name for name, origin in compiled.resolved.origins.items()
                          if origin.startswith("derived") and path in origin),
        "read_by": read_by,
        "rebuilds": [stage.name for stage in plan.stages if stage.name in after and stage.name not in read_by],
    }  # fmt: skip


def _rule(path: str) -> Schema:
    """Return the schema of a field, empty for what is no field of the language (facts of the verifier, hashes)."""
    plain = ".".join(part for part in path.split(".") if not part.isdecimal())
    return fields(published_schema()).get(plain, ({}, False))[0]


def _origin(compiled: Compiled, path: str) -> str:
    """Return where a value is from, with its line if the user wrote it."""
    if place := compiled.where(path):
        return place
    parents = (path.rsplit(".", end)[0] for end in range(path.count(".") + 1))
    return next((compiled.resolved.origins[name] for name in parents if name in compiled.resolved.origins), "the lock")


def _page(found: Mapping[str, Any]) -> str:
    """Return a field's page."""
    inner: Mapping[str, Any] = found["fields"]
    head = found["field"] if inner else f"{found['field']}: {_text(found['value'])}"
    rows = {
        "from": found["origin"],
        "default": None if found["default"] is None else _text(found["default"]),
        "means": found["description"] and found["description"].partition(". ")[0].rstrip("."),
        "takes": found["takes"],
        "derives": ", ".join(found["derives"]),
        "read by": ", ".join(found["read_by"]) or "no stage: nothing is built anew when it changes",
        "then": ", ".join(found["rebuilds"]),
    }
    lines = [head, *(f"  {name:<8} {text}" for name, text in rows.items() if text)]
    if inner:
        names = {name: name.removeprefix(f"{found['field']}.") for name in inner}
        width = max(map(len, names.values()))
        texts = {name: _text(item["value"]) for name, item in inner.items()}
        wide = min(40, max(map(len, texts.values())))
        lines += [
            "",
            *(f"  {names[name]:<{width}}  {texts[name]:<{wide}}  {item['origin']}" for name, item in inner.items()),
        ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
