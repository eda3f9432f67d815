"""Prompts of an evaluation as their files have them: which rows are taken, what is asked, and how they are counted.

A row has a conversation as `messages`, one question as `prompt`, or the user's side of a conversation as `turns`, as
the rows of MT-Bench (Zheng et al. 2023, arXiv:2306.05685), Spec-Bench (Xia et al. 2024, arXiv:2401.07851) and
SPEED-Bench (arXiv:2604.09557) have it; a list as `prompt` is such turns too. Of turns the first is asked alone: a later
one follows on an answer, which is each verifier's own, so that two verifiers would not be asked the same. For the same
reason nothing is asked behind the first call of a tool.

`tools` (or `functions`) beside any of them are what the assistant may call: it is asked with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from specc.core.errors import Position, SpeccError
from specc.core.files import sha256_file
from specc.core.images import ImageError, from_url, look
from specc.core.tools import ShapeError, tools_of

ROLES: Final = frozenset({"system", "user", "assistant"})
CALLS: Final = frozenset({"tool_calls", "function_call"})
FORMS: Final = 'a row is `{"messages": [{"role": "user", "content": "…"}]}`, `{"prompt": "…"}` or `{"turns": ["…"]}`'
ABSENT: Final = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""How a row of SPEED-Bench begins whose text its makers may not hand on."""

Message = dict[str, Any]
"""A turn's `role` and `content`: a text, or as OpenAI's clients write it a list of parts `{"type": "text", "text"}` and
`{"type": "image_url", "image_url": {"url"}}`, whose address is a `data:` URL."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to and with its last user turn, where it was read, and the subset that it counts in.

    `tools` is the JSON text of those that the assistant may call, as `specc.core.tools` has it, if there are any.
    """

    messages: tuple[Message, ...]
    where: Position
    subset: str = ""
    tools: str | None = None


def text_of(message: Message) -> str:
    """Return what is said in a turn, without its images."""
    content: Any = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


def images_of(messages: Iterable[Message]) -> list[str]:
    """Return the `data:` URLs of the images of turns, in order."""
    contents = (message["content"] for message in messages if not isinstance(message["content"], str))
    return [part["image_url"]["url"] for parts in contents for part in parts if "image_url" in part]


def name_of(source: Mapping[str, Any]) -> str:
    """Return what a source of prompts is called: its file's path, in a data set after the data set's id."""
    return source["file"] if "file" in source else f"{source['dataset']}/{source['path']}"


def read_prompts(
    sources: Iterable[Mapping[str, Any]], locate: Callable[[str], Path], system_prompt: str | None
) -> list[Prompt]:
    """Return the prompts of all sources of a resolved spec, in order; `locate` says where a `name_of` is.

    A row's turns after its last user turn are left out, since they are what the verifier is asked for. Rows
    without a system turn get `system_prompt`. Raises `SpeccError` for a file that is not the locked one, for a
    row of another form, and if there is no prompt at all.
    """
    found: list[Prompt] = []
    for source in sources:
        name = name_of(source)
        path = locate(name)
        if sha256_file(path) != source["sha256"]:
            raise SpeccError("the prompts changed after they were locked", where=name,
                             hint="`specc lock` pins them anew")  # fmt: skip
        found += read_source(path, name, source, system_prompt)
    if not found:
        raise SpeccError("`evaluate.prompts` holds no prompt", hint=FORMS)
    return found


def read_source(path: Path, name: str, source: Mapping[str, Any], system_prompt: str | None) -> list[Prompt]:
    """Return the prompts of one file, called `name`: `rows` of those in `categories`, all of both by default.

    Raises `SpeccError` for a row of another form, and if no row is of one of the categories.
    """
    wanted: Sequence[str] | None = source.get("categories")
    seen: set[str] = set()
    stem: str = name.rpartition("/")[2].rpartition(".")[0] or name

    def taken() -> Iterator[Prompt]:
        for row, where in _rows(path, name):
            category = row.get("category") if isinstance(row.get("category"), str) else None
            seen.add(category or "")
            if wanted is None or category in wanted:
                subset = source.get("subset") or category or stem
                yield Prompt(_messages(row, where, system_prompt), where, subset, _tools(row, where))

    found = list(islice(taken(), source.get("rows")))
    if wanted is not None and not found:
        has = ", ".join(f"`{one}`" for one in sorted(seen) if one) or "none"
        raise SpeccError(f"no row is of the categories {', '.join(f'`{one}`' for one in wanted)}", where=name,
                         hint=f"the categories of its rows: {has}")  # fmt: skip
    return found


def _rows(path: Path, name: str) -> Iterator[tuple[dict[str, Any], Position]]:
    """Yield the rows of a file, each with its place: a line, or the number of a row of a Parquet file."""
    if name.endswith(".parquet"):
        for number, row in enumerate(_table(path, name), 1):
            yield row, Position(name, number, 1)
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = Position(name, number, 1, max(1, len(line.rstrip("\n"))))
                yield _row(line, where), where


def _row(line: str, where: Position) -> dict[str, Any]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SpeccError(f"not JSON: {error}", where=where, hint=FORMS) from error
    if not isinstance(row, dict):
        raise SpeccError("a prompt of an unknown form", where=where, hint=FORMS)
    return row


def _table(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise SpeccError("a Parquet file is read by pyarrow, which is not installed", where=name,
                         hint="`pip install pyarrow`, or write the rows as JSON Lines") from error  # fmt: skip
    try:
        return list(parquet.read_table(path).to_pylist())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - it has no types
    except (ArrowException, OSError) as error:
        raise SpeccError("the Parquet file cannot be read", where=name, hint=FORMS) from error


def _tools(row: Mapping[str, Any], where: Position) -> str | None:
    """Return the tools of a row."""
    key = next((key for key in ("tools", "functions") if row.get(key)), None)
    try:
        return tools_of(row[key], key) if key else None
    except ShapeError as error:
        raise SpeccError(str(error), where=where, hint="tools are a list of functions, or its JSON text") from error


def _content(content: Any, where: Position) -> Any:
    """Return a turn's text, or its parts if images are among them; None for anything else.

    Raises `SpeccError` for an image that is not in the row.
    """
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    given: list[Any] = content
    parts: list[dict[str, Any]] = []
    for part in given:
        fields: dict[str, Any] = part if isinstance(part, dict) else {}
        address = fields.get("image_url")
        url = address.get("url") if isinstance(address, dict) else address
        if isinstance(fields.get("text"), str) and fields.get("type", "text") == "text":
            parts.append({"type": "text", "text": fields["text"]})
        elif fields.get("type") == "image_url" and isinstance(url, str):
            try:
                look(from_url(url))
            except ImageError as error:
                raise SpeccError(f"an image of a prompt {error}", where=where,
                                 hint="prompts have their images as `data:` URLs in base64") from error  # fmt: skip
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            return None
    return parts if any("image_url" in part for part in parts) else "\n".join(part["text"] for part in parts)


def _messages(row: Mapping[str, Any], where: Position, system_prompt: str | None) -> tuple[Message, ...]:
    given: Any = row.get("messages")
    turns: Any = row.get("turns", row.get("prompt"))
    if given is None and isinstance(turns, list) and turns and isinstance(turns[0], str):
        given = [{"role": "user", "content": turns[0]}]
    if given is None and isinstance(row.get("prompt"), str):
        given = [{"role": "user", "content": row["prompt"]}]
    if not isinstance(given, list):
        raise SpeccError("a prompt of an unknown form", where=where, hint=FORMS)
    messages: list[Message] = []
    said: list[Any] = given
    for turn in said:
        if isinstance(turn, dict) and any(turn.get(key) for key in CALLS):
            break  # what a tool answers belongs to this call, and the verifier may make another one, or none
        content = _content(turn.get("content"), where) if isinstance(turn, dict) else None
        if content is None or turn.get("role") not in ROLES:
            raise SpeccError("a turn needs a `role` and a text as `content`", where=where, hint=FORMS)
        messages.append({"role": turn["role"], "content": content})
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise SpeccError("a prompt needs a turn of the user", where=where, hint=FORMS)
    if text_of(messages[-1]).startswith(ABSENT):
        raise SpeccError("the text of this row is not in the data set, which only says where it is from", where=where,
                         hint="prepare SPEED-Bench with its own script, and name the file that it writes")  # fmt: skip
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return tuple(messages)
