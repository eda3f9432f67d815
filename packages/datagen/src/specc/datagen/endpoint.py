"""Answers of a server that serves the verifier behind OpenAI's protocol (`data.responses.endpoint`).

Prompts are written here, by the verifier's own template, and sent as token ids: what is asked is then what training
and serving show the verifier, whatever template the server has. With `protocol: chat` messages are sent instead.

Rows are answered in any order, each answer is kept in the shard's journal when it comes, and a shard is written in the
order of its rows once all are there.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from specc.core.errors import Exit, SpeccError
from specc.core.stage import Stage
from specc.datagen.allowance import LeftOut
from specc.datagen.client import AgainError, AwayError, Client, RefusedError
from specc.datagen.journal import Journal
from specc.datagen.refusals import Refusals
from specc.datagen.rows import Message, Row, ToolCall
from specc.datagen.talks import Asker, Talk

PROBE: Final = (
    'Räume, 語彙, слова, كلمات and 🧪: def f(x):\n    return {"n": 0x1F, "π": 3.14159}  # What is 12,345 + 6,789?'
)
"""A question that tokenizers take apart in different ways."""
PLAIN: Final[Mapping[str, Any]] = {
    "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
"""What vLLM takes from the model's `generation_config.json` where a request does not say it: nothing, here."""


class Endpoint(Asker):
    """A server that answers conversations."""

    def __init__(self, verifier: Path, stage: Stage, total: int) -> None:
        """Read tokenizer and template; the stage has `total` conversations. Nothing is asked."""
        super().__init__(verifier, stage.params)
        how: Mapping[str, Any] = stage.job.context["endpoint"]
        self.tokens, self.seconds = 0, 0.0
        self._model: str = self.options["endpoint"]["model"]
        self._chat: bool = self.options["endpoint"]["protocol"] == "chat"
        self._many: int = how["concurrency"]
        self._journals = stage.work / "answers"
        self._total = total
        self.refusals = Refusals(stage, total)
        self._others = 0
        """Answers to prompts that the server wrote in other lengths than we did."""
        self._stage = stage
        self._client = Client(how["address"], os.environ.get("OPENAI_API_KEY"), concurrency=self._many,
                              retries=how["retries"], timeout=how["timeout"])  # fmt: skip
        self._known = False
        self._runner = asyncio.Runner()

    def answer(self, rows: Sequence[Row], done: Callable[[int, str], None]) -> list[Row]:
        """Return the rows with every answer written anew; see `Writer`.

        Raises `SpeccError` if the server is not the verifier's, refuses too many rows, or is away for too long; what
        was answered until then is kept.
        """
        talks = self.begin(rows)
        journal = Journal(self._journals / f"{rows[0]['row']}.jsonl")
        self.refusals.begin(rows[0]["row"])
        if len(journal):
            self._stage.note(f"{len(journal)} answers are there from an earlier run")
        try:
            self._runner.run(self._shard(talks, journal, rows[0]["row"], len(rows) - len(talks), done))
        finally:
            journal.close()
        return [{**talk.row, "messages": talk.said} for talk in talks if talk.said]

    async def _shard(
        self, talks: list[Talk], journal: Journal, first: int, through: int, done: Callable[[int, str], None]
    ) -> None:
        """Have all conversations of a shard, so many at a time; `first` were in earlier ones, `through` ask nothing."""
        waiting, spent, began = iter(talks), self.seconds, time.monotonic()

        async def work() -> None:
            nonlocal through
            for talk in waiting:
                await self._talk(talk, journal)
                through += 1
                self.seconds = spent + max(time.monotonic() - began, 1e-6)
                done(through, f"{self.tokens / self.seconds:.0f} tokens/s")

        try:
            if not self._known:
                await self._meet()
                self._known = True
            await _all([work() for _ in range(min(self._many, len(talks)))])
        except AwayError as error:
            raise SpeccError(
                f"the endpoint is away ({error}): {first + through} of {self._total} rows are answered",
                hint="the same command goes on behind them, once the server is back",
                code=Exit.STAGE,
            ) from error

    async def _talk(self, talk: Talk, journal: Journal) -> None:
        """Have one conversation, turn by turn; what the server refuses ends it."""
        while talk.asked:
            messages = talk.next_prompt()
            if any("images" in message for message in messages):
                why = "an endpoint is asked without images in this release"
                self.refusals.add(LeftOut(talk.row["source"], talk.row["line"], why))
                return
            if (ids := self.prompt(talk, messages)) is None:
                return
            row, turn = talk.row["row"], len(messages)
            if (message := journal.get(row, turn)) is None:
                try:
                    message = await self._ask(talk, messages, ids)
                except RefusedError as error:
                    self.refusals.add(LeftOut(talk.row["source"], talk.row["line"], str(error)))
                    return
                journal.add(row, turn, message)
                self.tokens += message.get("tokens", 0)
            talk.said = [*messages, message]

    async def _ask(self, talk: Talk, messages: Sequence[Message], ids: list[int]) -> Message:
        """Return the verifier's answer; raises `RefusedError` and `AwayError`."""
        sampling = self.sampling(talk, len(messages), len(ids))
        name = [talk.row["id"], len(messages)]
        if not self._chat:
            body = {"model": self._model, "prompt": ids, **sampling, **PLAIN}
            return await self._client.ask("completions", body, lambda found: _completion(found, len(ids)), name)
        del sampling["stop_token_ids"], sampling["skip_special_tokens"]  # vLLM's own, and its server's matter
        found, length = await self._client.ask("chat/completions", self._chat_body(messages, talk.row.get("tools"))
                                               | sampling, _chat_answer, name)  # fmt: skip
        self._others += length != len(ids)
        return found

    def _chat_body(self, messages: Iterable[Message], tools: str | None) -> dict[str, Any]:
        kept = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
        arguments: Mapping[str, Any] = self.options.get("template", {})
        return {
            "model": self._model,
            "messages": [{key: value for key, value in message.items() if key in kept} for message in messages],
            **({"tools": json.loads(tools)} if tools else {}),
            **({"chat_template_kwargs": arguments} if arguments else {}),
            **{key: arguments[key] for key in ("reasoning_effort",) if key in arguments},
        }

    async def _meet(self) -> None:
        """Raise `SpeccError` if the server does not serve the verifier, as far as that can be seen from here.

        That is: it has the model's name, room for a sequence, and takes a text apart into as many tokens as we do.
        """
        try:
            served = await self._client.ask("models", None, _models, "models")
        except RefusedError as error:
            raise SpeccError(f"the endpoint does not say which models it serves: {error}",
                             code=Exit.STAGE) from error  # fmt: skip
        if self._model not in served:
            names = ", ".join(f"`{name}`" for name in sorted(served)[:5]) or "nothing"
            raise SpeccError(
                f"the endpoint serves {names}, and not `{self._model}`",
                hint="`data.responses.endpoint.model` is the name that the server gives the verifier",
                code=Exit.STAGE,
            )
        room = served[self._model]
        if room is not None and room < self.length:
            raise SpeccError(
                f"the endpoint has room for {room} tokens, and `data.sequence_length` is {self.length}",
                hint=f"start the server with `--max-model-len {self.length}`, or use a shorter `sequence_length`",
                code=Exit.STAGE,
            )
        question: list[Message] = [{"role": "user", "content": PROBE}]
        ours = len(self.encode(question))
        one: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
        if self._chat:
            path, body = "chat/completions", self._chat_body(question, None)
        else:
            path, body = "completions", {"model": self._model, "prompt": self.text(question)}
            one["add_special_tokens"] = False
        try:
            theirs = await self._client.ask(path, body | one, _prompt_tokens, "probe")
        except RefusedError as error:
            raise SpeccError(
                f"the endpoint does not take a first question: {error}",
                hint=None if self._chat else "`protocol: chat` is what servers without completions take",
                code=Exit.STAGE,
            ) from error
        if theirs != ours:
            raise SpeccError(
                f"the endpoint is not the verifier: it takes a text for {theirs} tokens that has {ours}",
                hint="it has another chat template, which `protocol: completions` goes past, or another model"
                if self._chat
                else f"serve the verifier itself as `{self._model}`",
                code=Exit.STAGE,
            )
        if self._chat:
            self._stage.warn("the server's own chat template writes the prompts (`protocol: chat`)")

    def close(self) -> None:
        """Close all connections, and say what was odd."""
        self._stage.record["requests_sent_again"] = self._client.failures
        if self._others:
            prompts = "1 prompt" if self._others == 1 else f"{self._others} prompts"
            self._stage.warn(f"the server wrote {prompts} in another length than the verifier's template here: those"
                             " answers are to other prompts than the draft will be given")  # fmt: skip
        self._runner.run(self._client.close())
        self._runner.close()


async def _all(works: Iterable[Any]) -> None:
    """Wait for all; the first that raises ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(Exception):
            await asyncio.gather(*tasks, return_exceptions=True)


# What comes back, read with nothing taken for granted


def _models(found: Any) -> dict[str, int | None]:
    """Return the names of the models of `GET /models`, and how many tokens each has room for if that is said."""
    try:
        room = {str(item["id"]): item.get("max_model_len") for item in found["data"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise AgainError("a list of models that is none") from error
    return {name: most if type(most) is int else None for name, most in room.items()}


def _prompt_tokens(found: Any) -> int:
    try:
        tokens = found["usage"]["prompt_tokens"]
    except (KeyError, TypeError) as error:
        raise AgainError("an answer without `usage.prompt_tokens`") from error
    if type(tokens) is not int:
        raise AgainError("an answer without `usage.prompt_tokens`")
    return tokens


def _text(value: object) -> str:
    try:
        if isinstance(value, str) and value.encode():
            return value
    except UnicodeEncodeError as error:
        raise AgainError("an answer with half a surrogate pair") from error
    if value in ("", None):
        return ""
    raise AgainError("an answer whose text is none")


class _End(TypedDict):
    """How an answer ended, and how many tokens it has."""

    finish: Literal["stop", "length"]
    tokens: int


def _choice(found: Any) -> tuple[Mapping[str, Any], _End]:
    """Return an answer's only choice, which came to an end, and that end."""
    try:
        (choice,), tokens = found["choices"], found["usage"]["completion_tokens"]
        finish = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise AgainError("an answer without a choice, or without its tokens") from error
    if finish not in ("stop", "length", "tool_calls") or type(tokens) is not int or not 0 <= tokens < 2**31:
        raise AgainError(f"an answer that ended with `{str(finish)[:40]}`")
    return choice, {"finish": "length" if finish == "length" else "stop", "tokens": tokens}


def _completion(found: Any, length: int) -> Message:
    """Return an answer to a prompt of `length` tokens."""
    choice, end = _choice(found)
    if (other := _prompt_tokens(found)) != length:
        raise AgainError(f"an answer to a prompt of {other} tokens instead of {length}")
    return {"role": "assistant", "content": _text(choice.get("text")), **end}


def _chat_answer(found: Any) -> tuple[Message, int]:
    """Return an answer, and how many tokens the server's prompt had."""
    choice, end = _choice(found)
    said = choice.get("message")
    if not isinstance(said, dict):
        raise AgainError("an answer without a message")
    message: Message = {"role": "assistant", "content": _text(said.get("content")), **end}
    if (thought := _text(said.get("reasoning_content") or said.get("reasoning"))).strip():
        message["reasoning_content"] = thought
    if calls := said.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else []
    return message, _prompt_tokens(found)


def _call(call: Any) -> ToolCall:
    try:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if not isinstance(json.loads(_text(arguments)), dict):
            raise TypeError  # noqa: TRY301 - one word for all that is none
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RefusedError("its answer calls a tool with arguments that are no JSON object") from error
    identity = _text(call["id"]) if isinstance(call.get("id"), str) else ""
    return {"id": identity, "type": "function", "function": {"name": _text(name), "arguments": arguments}}
