"""A server elsewhere, measured as a benchmark measures: an OpenAI-compatible endpoint of vLLM, asked in a closed loop.

What is counted is what the server counts, in `/metrics` before and after; nobody else may ask it meanwhile. With
`--per-request-spec-decode-metrics summary` vLLM counts each answer too, and then there are subsets and intervals over
the prompts. Its machine, its versions and its batches are not ours to know: the result is a file, and no artifact.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final

from specc.core.errors import Exit, SpeccError
from specc.core.measure.acceptance import Counts, Drafted, counted, measured
from specc.core.measure.advice import advice
from specc.core.measure.intervals import paired
from specc.core.measure.prompts import Prompt

SMALL: Final = 64 << 20
"""Bytes of an answer at most."""


@dataclass(frozen=True, slots=True)
class Server:
    """An endpoint: its address up to and with `/v1`, and the seconds that one answer may take."""

    url: str
    timeout: float

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Return what is at a path below the address; raises `SpeccError` in words for what is wrong with it.

        The key is that of `OPENAI_API_KEY`, and goes to this address alone, not to one that it redirects to.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"User-Agent": "specc"})  # noqa: S310 - see below
        if request.type not in ("http", "https"):
            raise SpeccError(f"`{self.url}` is not an http address", hint="give one such as http://127.0.0.1:8000/v1",
                             code=Exit.USAGE)  # fmt: skip
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if key := os.environ.get("OPENAI_API_KEY"):
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310 - the scheme was checked
                return answer.read(SMALL)
        except urllib.error.HTTPError as error:
            raise _status(error, self.url + path) from error
        except TimeoutError as error:
            raise self._slow() from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._slow() from error
            raise SpeccError(f"the server at `{self.url}` cannot be reached: {str(reason)[:200]}",
                             hint="`curl URL/models` tells whether it is up", code=Exit.STAGE) from error  # fmt: skip

    def read(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a JSON object that is there."""
        try:
            found: Any = json.loads(self.ask(path, body))
        except (ValueError, RecursionError) as error:
            raise self._other() from error
        if not isinstance(found, dict):
            raise self._other()
        return found

    def model(self) -> str:
        """Return the id of the first model that is served."""
        try:
            return str(self.read("/models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise self._other() from error

    def counters(self) -> Counts:
        """Return what `/metrics` counts; it stands beside `/v1`. Raises `SpeccError` if there is none."""
        root = Server(self.url.removesuffix("/v1"), self.timeout)
        try:
            text = root.ask("/metrics").decode(errors="replace")
        except SpeccError as error:
            raise SpeccError("the server's `/metrics` cannot be read, and it alone says what was accepted",
                             where=root.url, note=error.message, hint="start vLLM without `--disable-log-stats`",
                             code=Exit.STAGE) from error  # fmt: skip
        found = counted(text)
        if found is None:
            raise SpeccError("the server speculates nothing: its `/metrics` has no `vllm:spec_decode_num_drafts_total`",
                             where=root.url, hint="serve the speculator: `specc serve SPEC` has the command; a server"
                             " of the verifier alone is `--plain-url`", code=Exit.STAGE)  # fmt: skip
        return found

    def _slow(self) -> SpeccError:
        return SpeccError(f"the server at `{self.url}` did not answer in {self.timeout:g} s",
                          hint="give it longer with `--timeout`, or ask for less", code=Exit.STAGE)  # fmt: skip

    def _other(self) -> SpeccError:
        return SpeccError(f"the answer of `{self.url}` is not that of an OpenAI-compatible server",
                          hint="give the address up to and with `/v1`", code=Exit.STAGE)  # fmt: skip


def _status(error: urllib.error.HTTPError, address: str) -> SpeccError:
    """Return the error for a status other than 200, with what the server says of it."""
    try:
        said = json.loads(error.read(SMALL))
        said = said.get("error", said)
        note = str(said.get("message") if isinstance(said, dict) else said)[:300]
    except (ValueError, AttributeError, OSError, HTTPException, RecursionError):
        note = None
    hint = {401: "set `OPENAI_API_KEY`", 403: "set `OPENAI_API_KEY`", 404: "give the address up to and with `/v1`"}
    return SpeccError(f"`{address}` answered {error.code}", note=note,
                      hint=hint.get(error.code, "the server's own log says why"), code=Exit.STAGE)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer: its text and tokens, and what was drafted for it, None if the server does not say."""

    text: str
    tokens: int
    drafted: Drafted | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One run over the prompts."""

    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second, prefill and HTTP included."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


def drive(
    url: str,
    prompts: Sequence[Prompt],
    *,
    plain_url: str | None = None,
    temperatures: Sequence[float],
    batch_sizes: Sequence[int],
    max_tokens: int,
    repeats: int,
    timeout: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return what a server did with prompts, in the form of `benchmark.json`, and as `speeds` what its record has.

    `url` serves the speculator and `plain_url`, if given, the verifier alone; both answer in turn, `batch_sizes`
    requests at once. The first run of each counts and is not timed. `say` is told of each cell. Raises `SpeccError`
    for a server that cannot be reached, does not answer in `timeout` seconds, refuses, or counts no speculation.
    """
    server = Server(_address(url), timeout)
    plain = Server(_address(plain_url), timeout) if plain_url else None
    model, other = server.model(), plain.model() if plain else ""
    server.counters()
    cells: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    for temperature in temperatures:
        for batch in batch_sizes:

            def run(one: Server, name: str, temperature: float = temperature, batch: int = batch) -> Asked:
                return _closed_loop(one, name, prompts, temperature=temperature, batch=batch, max_tokens=max_tokens)

            say(f"temperature {temperature:g}, {batch} at once")
            before = server.counters()
            counted = run(server, model)
            found = server.counters().minus(before)
            alone = run(plain, other) if plain else None
            pairs = [(run(plain, other) if plain else None, run(server, model)) for _ in range(repeats)]
            name = {"temperature": temperature, "speculative_tokens": len(found.per_position), "batch_size": batch}
            cells.append(name | _cell(counted, found, prompts, alone if temperature == 0 else None))
            speeds.append(name | _speed(pairs))
    names = sorted({prompt.subset for prompt in prompts})
    advised = advice([speed for speed in speeds if speed["speedup"] is not None])
    return {
        "runtime": "endpoint",
        "prompts": len(prompts),
        "max_tokens": max_tokens,
        "subsets": {one: {"prompts": sum(prompt.subset == one for prompt in prompts)} for one in names},
        "cells": cells,
        "speeds": {"cells": speeds, "advice": advised},
    }


def _address(url: str) -> str:
    return url.rstrip("/")


def _tools(prompt: Prompt) -> dict[str, Any]:
    """Return what a request says of a prompt's tools: the template shows them, and nobody looks for calls in the text.

    With `auto`, a server of vLLM that was started without a parser of calls takes no tools at all.
    """
    return {"tools": json.loads(prompt.tools), "tool_choice": "none"} if prompt.tools else {}


def _closed_loop(
    server: Server, model: str, prompts: Sequence[Prompt], *, temperature: float, batch: int, max_tokens: int
) -> Asked:
    """Ask all prompts in their order, `batch` at once; each has its number as its seed."""

    def ask(item: tuple[int, Prompt]) -> Answer:
        seed, prompt = item
        found = server.read(
            "/chat/completions",
            {"model": model, "messages": list(prompt.messages), "max_tokens": max_tokens, "temperature": temperature,
             "seed": seed, **_tools(prompt)},
        )  # fmt: skip
        try:
            text, tokens = found["choices"][0]["message"]["content"] or "", int(found["usage"]["completion_tokens"])
            each: Any = (found.get("metrics") or {}).get("speculative_decoding")
            drafted = each and Drafted(
                histogram=tuple(each["acceptance_histogram"]), draft_tokens=each["num_draft_tokens"]
            )
            return Answer(text=text, tokens=tokens, drafted=drafted)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SpeccError(f"an answer of `{server.url}` has no text or does not count its tokens",
                             hint="give the address of an OpenAI-compatible server",
                             code=Exit.STAGE) from error  # fmt: skip

    started = time.monotonic()
    pool = ThreadPoolExecutor(max_workers=batch)
    try:
        answers = tuple(pool.map(ask, enumerate(prompts)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Asked(answers=answers, seconds=time.monotonic() - started)


def _cell(found: Asked, counts: Counts, prompts: Sequence[Prompt], alone: Asked | None) -> dict[str, Any]:
    """Return a cell; what the server does not count for each answer has no interval and no subsets."""
    drafted = [answer.drafted for answer in found.answers if answer.drafted is not None]
    tokens = [answer.tokens for answer in found.answers]
    each = len(drafted) == len(tokens)
    subsets: dict[str, Any] = {}
    for name in sorted({prompt.subset for prompt in prompts}) if each else ():
        chosen = [index for index, prompt in enumerate(prompts) if prompt.subset == name]
        subsets[name] = measured([drafted[index] for index in chosen], sum(tokens[index] for index in chosen))
    same = sum(one.text == two.text for one, two in zip(found.answers, alone.answers, strict=True)) if alone else 0
    return {
        **counts.as_json(),
        "output_tokens": sum(tokens),
        "interval": measured(drafted, sum(tokens))["interval"] if each else None,
        "subsets": subsets,
        "lossless": {"identical": same, "prompts": len(prompts)} if alone else None,
    }


def _speed(pairs: Sequence[tuple[Asked | None, Asked]]) -> dict[str, Any]:
    """Return the speeds of pairs of runs, without and with the speculator; without the former, of the latter alone."""
    fast = [one.tokens_per_second for _, one in pairs]
    slow = [one.tokens_per_second for one, _ in pairs if one is not None]
    speedup, interval = paired([two / one for one, two in zip(slow, fast, strict=True)]) if slow else (None, None)
    return {
        "tokens_per_second": round(sum(fast) / len(fast), 1),
        "plain_tokens_per_second": round(sum(slow) / len(slow), 1) if slow else None,
        "speedup": None if speedup is None else round(speedup, 4),
        "interval": None if interval is None else [round(end, 4) for end in interval],
        "repeats": len(pairs),
    }
