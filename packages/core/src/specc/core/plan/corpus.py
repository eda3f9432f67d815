"""How much data a spec has: rows and tokens, from artifacts where there are any, else from the start of its files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from specc.core.datafiles import items_of, label, local_files, local_format
from specc.core.errors import SpeccError
from specc.core.plan.plan import Plan, decide
from specc.core.plan.samples import sample
from specc.core.plan.stages import Values
from specc.core.store import Store

INDEXED: Final = ("conversations", "responses", "tokens")
"""Stages whose artifacts say how much data there is."""
_SPOKEN: Final = ("messages", "conversations", "prompt")
_ANSWERS: Final = ("output", "response", "completion")
_ASKING: Final = ("system", "user", "human")

# `quickstart`, `full` and `bench` are named as in `specc.core.plan.rates`.

LETTERS: Final = 4.0
"""Bytes of text a token stands for: English in vocabularies of 32,000 tokens and more."""
FRAME: Final = 14
"""Tokens that a chat template puts around a message: full has 46 a row that are no answer, 18 of them text."""
ANSWER: Final = 445
"""Mean tokens of an answer that nothing cuts, if lengths are exponential: in full, three of four go past 128."""
ASKED: Final = 72.0
"""Bytes of a prompt whose file is not here: the mean of full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """How much data there is: rows, and tokens of prompts and answers of all of them together.

    `text` are bytes of the sources' rows, `held` is the share of the rows that is for validation. `prompts` are the
    evaluation's, `prompt` the tokens of one of them.
    """

    rows: float
    text: float
    asked: float
    answered: float
    held: float
    prompts: float
    prompt: float
    complete: bool

    @property
    def tokens(self) -> float:
        """Tokens of all rows."""
        return self.asked + self.answered

    @property
    def length(self) -> float:
        """Mean tokens of a row."""
        return self.tokens / max(1.0, self.rows)


def indexes(plan: Plan, store: Store | None) -> dict[str, dict[str, Any]]:
    """Return `index.json` of those artifacts of the plan that are in the store."""
    if store is None:
        return {}
    there = {item.stage.name: item.digest for item in decide(plan, store) if item.digest}
    return {name: read_json(store, digest, "index.json") for name, digest in there.items()}


def read_json(store: Store, digest: str, name: str) -> dict[str, Any]:
    """Return a file of an artifact, empty if it is not there or is none."""
    try:
        return dict[str, Any](json.loads((store.path(digest) / name).read_bytes()))
    except (SpeccError, OSError, ValueError, TypeError, RecursionError):
        return {}


def count(
    values: Values,
    files: Mapping[str, Path],
    indexes: Mapping[str, Mapping[str, Any]],
    look: Callable[[int | None, Path | None], Text],
) -> Corpus:
    """Count rows and tokens: what artifacts say goes before what files say, which is seen by `look_into`."""

    def texts_of(items: Sequence[Mapping[str, Any]]) -> list[Text]:
        return [_text(item, files, look) for item in items]

    data, evaluate = values["data"], values.get("evaluate")
    conversations, responses, tokens = (indexes.get(name, {}) for name in INDEXED)
    sources, apart = _mixed(data["sources"], texts_of(data["sources"])), texts_of(data["validation"]["sources"])
    prompts, texts = texts_of(evaluate["prompts"] if evaluate else ()), [*sources, *apart]
    generated, samples = data["responses"]["from"] == "verifier", data["responses"].get("samples", 1)
    read = samples * (number(conversations.get("rows")) or 0.0)
    counted = number(tokens.get("rows")) or number(responses.get("rows")) or read or None
    if counted and not sum(text.rows for text in texts):
        texts = [Text(rows=counted)]
    rows = sum(text.rows for text in texts)
    scale = (counted or samples * rows) / rows if rows else 0.0

    length = data["sequence_length"]
    mean = mean_answer(data["responses"]["max_tokens"])
    asked = [min(length, text.prompt) for text in texts]
    wanted = [text.turns * mean if generated else text.answered / LETTERS for text in texts]
    given = [min(length - prompt, answer) for prompt, answer in zip(asked, wanted, strict=True)]
    prompted, answered = (
        scale * sum(text.rows * count for text, count in zip(texts, counts, strict=True)) for counts in (asked, given)
    )
    answered = number(responses.get("tokens")) or answered
    if every := number(tokens.get("tokens")):
        shards: list[Any] = [shard for shard in tokens.get("shards", ()) if isinstance(shard, dict)]
        answered = min(every, sum(number(shard.get("trained_tokens")) or 0.0 for shard in shards))
        prompted = every - answered
    held = sum(text.rows for text in apart) / rows if apart and rows else data["validation"]["share"]
    if split := number(conversations.get("rows")):
        held = (number(conversations.get("validation")) or 0.0) / split
    return Corpus(
        rows=rows * scale,
        text=sum(text.rows * text.line for text in texts) * scale,
        asked=prompted,
        answered=answered,
        held=held,
        prompts=sum(text.rows for text in prompts),
        prompt=_mean([(text.rows, text.prompt) for text in prompts]),
        complete=all(text.known for text in prompts) and (bool(counted) or all(text.known for text in texts)),
    )


def uncounted(values: Values, files: Mapping[str, Path]) -> list[str]:
    """Return the sources whose rows are not known before they are read, as a person calls them."""
    look = cache(look_into)
    return list(dict.fromkeys(label(item) for _, item in items_of(values) if not _text(item, files, look).known))


def _text(item: Mapping[str, Any], files: Mapping[str, Path], look: Callable[[int | None, Path | None], Text]) -> Text:
    """Return what is in a source: of a hub's nothing is known but the rows that are asked for, or that its card states.

    Of an address it is the former alone.
    """
    limit = item.get("rows")
    texts = [look(limit, files.get(name)) for name in local_files(item)]
    if len(texts) == 1:
        return texts[0]
    if not texts and (stated := item.get("examples")):
        return Text(rows=min(stated, limit or stated))
    if not texts or not all(text.known for text in texts):
        return Text(rows=limit or sum(text.rows for text in texts if text.known), known=limit is not None)
    line, asked, answered, turns = (
        _mean([(text.rows, getattr(text, name)) for text in texts]) for name in ("line", "asked", "answered", "turns")
    )
    rows = sum(text.rows for text in texts)
    return Text(rows=min(rows, limit or rows), line=line, asked=asked, answered=answered, turns=turns)


def _mixed(items: Sequence[Mapping[str, Any]], texts: list[Text]) -> list[Text]:
    """Return the parts of a mix, which ends where a source runs out; nothing if one of them may be of any length."""
    weights: list[float] = [item["weight"] for item in items if "weight" in item]
    if not weights:
        return texts
    if not all(text.known for text in texts):
        return [replace(text, rows=0, known=False) for text in texts]
    whole = min(text.rows / weight for text, weight in zip(texts, weights, strict=True))
    return [replace(text, rows=whole * weight) for text, weight in zip(texts, weights, strict=True)]


def mean_answer(limit: int) -> float:
    """Return the mean tokens of an answer that is cut at `limit`: E[min(X, limit)] of an exponential X."""
    return ANSWER * -math.expm1(-limit / ANSWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is in a data file: rows, and means over them: bytes of a line, of what is asked and answered; user turns."""

    rows: float
    line: float = ASKED
    asked: float = ASKED
    answered: float = 0.0
    turns: float = 1.0
    known: bool = True

    @property
    def prompt(self) -> float:
        """Tokens of a row but for its answers."""
        return self.asked / LETTERS + 2 * FRAME * self.turns


def look_into(limit: int | None, path: Path | None) -> Text:
    """Look into the start of a data file of which `limit` rows are taken; what `sample` cannot tell is not known."""
    try:
        found = sample(path, local_format(path.name)) if path else None
    except (OSError, ValueError):
        found = None
    if found is None:
        return Text(rows=limit or 0, known=limit is not None)
    rows = min(found.rows, limit or found.rows)
    if not found.first:
        return Text(rows=rows)
    said = [_said(row) for row in found.first]
    turns, asked, answered = (sum(column) / len(said) for column in zip(*said, strict=True))
    return Text(rows=rows, line=found.line or ASKED, asked=asked, answered=answered, turns=turns)


def _said(row: Any) -> tuple[int, int, int]:
    """Return a row's user turns, letters that are asked and letters that are answered; a row of no known shape asks.

    The shapes are those of `specc.datagen.shapes`, which says what is wrong with a row: here nothing is.
    """
    if not isinstance(row, dict):
        return 1, len(str(row)), 0
    fields: dict[str, Any] = row
    asking: Any = fields.get("turns")
    if isinstance(asking, list) and asking:  # prompts as MT-Bench has them
        return 1, _letters(asking[0]), 0
    if isinstance(ids := fields.get("input_ids"), list):
        return 0, int(LETTERS * len(ids)), 0  # its mask is not counted: one of several names and forms
    spoken: Any = next((fields[name] for name in _SPOKEN if isinstance(fields.get(name), list)), None)
    if spoken is None:
        answered = sum(_letters(fields.get(name)) for name in _ANSWERS)
        return 1, sum(map(_letters, fields.values())) - answered, answered
    turns: list[dict[str, Any]] = [turn for turn in spoken if isinstance(turn, dict)]
    theirs = [turn for turn in turns if turn.get("role", turn.get("from")) in _ASKING]
    asked, every = (sum(_letters(turn.get("content", turn.get("value"))) for turn in some) for some in (theirs, turns))
    return max(1, sum(turn.get("role", turn.get("from")) != "system" for turn in theirs)), asked, every - asked


def _letters(value: object) -> int:
    return len(value) if isinstance(value, str) else 0


def _mean(weighted: list[tuple[float, float]]) -> float:
    weight = sum(count for count, _ in weighted)
    return sum(count * value for count, value in weighted) / weight if weight else 0.0


def number(value: object) -> float | None:
    """Return what is a positive number as one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)
