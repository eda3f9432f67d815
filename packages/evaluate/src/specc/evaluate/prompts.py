"""Held-out prompts: read from JSON lines, rendered by the verifier's own chat template on a pinned date."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Position, SpeccError
from specc.core.files import sha256_file

ROLES: Final = frozenset({"system", "user", "assistant"})
FORMS: Final = 'a row is `{"messages": [{"role": "user", "content": "…"}]}` or `{"prompt": "…"}`'

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to and with its last user turn, and where it was read."""

    messages: tuple[Message, ...]
    where: Position


def read_prompts(
    sources: Iterable[Mapping[str, Any]], locate: Callable[[str], Path], system_prompt: str | None
) -> list[Prompt]:
    """Return the prompts of all sources (`{"file", "sha256", "rows"}`), in order.

    A row's turns after its last user turn are left out, since they are what the verifier is asked for. Rows
    without a system turn get `system_prompt`. Raises `SpeccError` for a file that is not the locked one, for a
    row of another form, and if there is no prompt at all.
    """
    found: list[Prompt] = []
    for source in sources:
        path = locate(source["file"])
        if sha256_file(path) != source["sha256"]:
            raise SpeccError("the prompts changed after they were locked", where=source["file"],
                             hint="`specc lock` pins them anew")  # fmt: skip
        found += islice(_rows(path, source["file"], system_prompt), source["rows"])
    if not found:
        raise SpeccError("`evaluate.prompts` holds no prompt", hint=FORMS)
    return found


def _rows(path: Path, name: str, system_prompt: str | None) -> Iterator[Prompt]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = Position(name, number, 1, max(1, len(line.rstrip("\n"))))
                yield Prompt(_messages(line, where, system_prompt), where)


def _messages(line: str, where: Position, system_prompt: str | None) -> tuple[Message, ...]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise SpeccError(f"not JSON: {error}", where=where, hint=FORMS) from error
    given: Any = row.get("messages") if isinstance(row, dict) else None
    if given is None and isinstance(row, dict) and isinstance(row.get("prompt"), str):
        given = [{"role": "user", "content": row["prompt"]}]
    if not isinstance(given, list):
        raise SpeccError("a prompt of an unknown form", where=where, hint=FORMS)
    messages: list[Message] = []
    turns: list[Any] = given
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise SpeccError("a turn needs a `role` and a text as `content`", where=where, hint=FORMS)
        messages.append({"role": turn["role"], "content": turn["content"]})
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise SpeccError("a prompt needs a turn of the user", where=where, hint=FORMS)
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return tuple(messages)


def render(
    prompts: Iterable[Prompt], verifier: Path, date: str, arguments: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Return each prompt as token ids, the start of the assistant's turn at its end.

    `date` (`2026-11-23`) is what the template prints for today; `arguments` are those of the spec. Raises `SpeccError`
    if there is no chat template, or if it refuses a prompt.
    """
    import jinja2
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(verifier))
    if not tokenizer.chat_template:
        raise SpeccError("the verifier has no chat template", where=str(verifier),
                         hint="use a verifier with `chat_template.jinja`, such as an instruct model")  # fmt: skip
    today = datetime.fromisoformat(date)
    rendered: list[list[int]] = []
    for prompt in prompts:
        try:
            # A template variable hides the function of the same name that would read the clock.
            tokens = tokenizer.apply_chat_template(
                list(prompt.messages), add_generation_prompt=True, return_dict=False, strftime_now=today.strftime,
                **(arguments or {}),
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise SpeccError(f"the verifier's chat template refuses this prompt: {error}", where=prompt.where,
                             hint="change the row, or leave it out") from error  # fmt: skip
        rendered.append(list(tokens))
    return rendered
