"""The stage `responses`: the verifier answers the prompts itself, so that the draft learns its words.

A shard's conversations are answered turn by turn: round r makes the r-th answer of all rows that ask for one, in
one call. A row's random stream depends on the row and the turn, not on its neighbours or its place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from specc.core.errors import Exit, SpeccError
from specc.core.files import digest_of, pretty, write_atomic
from specc.core.stage import Stage
from specc.datagen.engine import generate, start, stop
from specc.datagen.rows import Message, Row, read_rows, read_shards, shard_info, shard_name, write_rows
from specc.datagen.template import ChatTemplate, render


def responses(stage: Stage) -> None:
    """Write a shard of answered conversations for each shard of conversations.

    A row whose first prompt does not fit into `data.sequence_length`, or which the chat template refuses, is left
    out; one whose later prompt does not fit ends before it. Both are counted. Raises `SpeccError` if no row is left.
    """
    params, source, verifier = stage.params, stage.input("conversations"), stage.job.inputs["verifier"]
    material = {
        "responses": params["data"]["responses"],
        "sequence_length": params["data"]["sequence_length"],
        "date": params["date"],
        "verifier": params["verifier"],
        "verifier_digest": verifier.digest,
    }
    shards = read_shards(source)
    total, done, infos = sum(shard.rows for shard in shards), 0, list[dict[str, Any]]()
    counts: Counter[str] = Counter()
    writer: Writer | None = None
    try:
        for number, shard in enumerate(shards):
            name = shard_name(number, ".jsonl")

            def write(path: Path, file: str = shard.file, before: int = done) -> None:
                nonlocal writer
                if writer is None:
                    stage.progress(before, total, "rows", "starting vLLM")
                    writer = Writer(Path(verifier.path), params, stage.facets)
                rows = list(read_rows(source / file))
                write_rows(
                    path, writer.answer(rows, lambda count, text: stage.progress(before + count, total, "rows", text))
                )

            stage.unit({**material, "rows": shard.sha256}, name, write)
            kept = list(read_rows(stage.output / name))
            counts += count(list(read_rows(source / shard.file)), kept)
            infos.append(asdict(shard_info(stage.output, name, len(kept))))
            done += shard.rows
            stage.progress(done, total, "rows")
    finally:
        if writer is not None:
            writer.close()
    _say(stage, counts, writer, total)
    names = ("tokens", "length", "left_out", "shortened")
    index = {"rows": total - counts["left_out"], "shards": infos, **{name: counts[name] for name in names}}
    write_atomic(stage.output / "index.json", pretty(index))


def count(asked: Sequence[Row], kept: Sequence[Row]) -> Counter[str]:
    """Return a shard's counts, from its rows alone, so that a shard of an earlier build has them too."""
    turns = {row["row"]: _users(row) for row in asked}
    answers = [message for row in kept for message in row["messages"] if message["role"] == "assistant"]
    return Counter(
        tokens=sum(message.get("tokens", 0) for message in answers),
        length=sum(message.get("finish") == "length" for message in answers),
        left_out=len(asked) - len(kept),
        shortened=sum(_users(row) < turns[row["row"]] for row in kept),
    )


def _users(row: Row) -> int:
    return sum(message["role"] == "user" for message in row["messages"])


def _say(stage: Stage, counts: Counter[str], writer: Writer | None, total: int) -> None:
    if writer is not None:
        stage.record["tokens"] = writer.tokens
        stage.record["tokens_per_second"] = round(writer.tokens / writer.seconds, 1) if writer.tokens else None
    example = f", the first of them {writer.refused[0]}" if writer and writer.refused else ""
    if counts["left_out"] == total:
        raise SpeccError(
            f"no prompt fits into `data.sequence_length` ({stage.params['data']['sequence_length']}){example}",
            hint="give a larger `data.sequence_length`, or shorter prompts",
            code=Exit.STAGE,
        )
    if counts["left_out"]:
        stage.warn(f"{counts['left_out']} of {total} rows are too long or refused, and left out{example}")
    if counts["shortened"]:
        stage.note(
            f"{counts['shortened']} of {total} conversations end before a turn that would be too long, or that"
            " follows what a tool answered"
        )


@dataclass(slots=True)
class Talk:
    """A conversation on its way: what was said, and what is still to be asked."""

    row: Row
    said: list[Message] = field(default_factory=list[Message])
    asked: list[Message] = field(default_factory=list[Message])

    @classmethod
    def of(cls, row: Row) -> Talk:
        """Begin a row's conversation; its own answers are dropped, and all that follows what a tool answered.

        A result belongs to a call, and the verifier may make another one, or none.
        """
        messages = row["messages"]
        end = next((i for i, message in enumerate(messages) if message["role"] == "tool"), len(messages))
        return cls(row, asked=[message for message in messages[:end] if message["role"] != "assistant"])

    def next_prompt(self) -> list[Message]:
        """Return what was said, up to and with the next question, which is then asked no more."""
        last = next(index for index, message in enumerate(self.asked) if message["role"] == "user")
        question, self.asked = self.asked[: last + 1], self.asked[last + 1 :]
        return [*self.said, *question]


class Writer:
    """A verifier that answers conversations."""

    def __init__(self, verifier: Path, params: Mapping[str, Any], facets: Mapping[str, Any]) -> None:
        """Read tokenizer and template; `params` are the stage's. vLLM is started for the first prompt that fits."""
        from specc.datagen.tokens import load_tokenizer

        self._options: Mapping[str, Any] = params["data"]["responses"]
        self._length: int = params["data"]["sequence_length"]
        self._date: str = params["date"]
        self._ends: list[int] = params["verifier"]["config"]["eos_token_ids"]
        self._template, self._tokenizer = ChatTemplate.load(verifier), load_tokenizer(verifier)
        self._start: Callable[[], Any] = partial(start, verifier, params, facets, length=self._length)
        self._llm: Any = None
        self.refused: list[str] = []
        """Where rows stood that were left out, and why."""
        self.tokens, self.seconds = 0, 0.0
        """Tokens written so far, and the time that it took."""

    def answer(self, rows: Sequence[Row], done: Callable[[int, str], None]) -> list[Row]:
        """Return the rows with every answer written anew.

        `done` is called with the number of rows that are through, and a word on the speed.
        """
        talks = [Talk.of(row) for row in rows]
        self.refused += [
            f"{talk.row['source']}:{talk.row['line']} (its tokens are given, and nothing asks for an answer)"
            for talk in talks
            if not talk.asked
        ]
        going = [talk for talk in talks if talk.asked]
        while going:
            asking, prompts, params = list[Talk](), list[list[int]](), list[Any]()
            for talk in going:
                messages = talk.next_prompt()
                if (prompt := self._prompt(talk, messages)) is not None:
                    talk.said = messages
                    asking.append(talk)
                    prompts.append(prompt)
                    params.append(self._sampling(talk, len(prompt)))
            if not asking:
                break
            if self._llm is None:
                self._llm = self._start()
            began, tokens, last = time.monotonic(), 0, sum(not talk.asked for talk in asking)
            through = len(rows) - last
            for number, output in generate(self._llm, prompts, params):
                talk, found = asking[number], output.outputs[0]
                talk.said.append({"role": "assistant", "content": found.text, "finish": found.finish_reason,
                                  "tokens": len(found.token_ids)})  # fmt: skip
                tokens += len(found.token_ids)
                through += not talk.asked
                spent = self.seconds + time.monotonic() - began  # over all shards: one ends in bursts
                done(through, f"{(self.tokens + tokens) / spent:.0f} tokens/s")
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + time.monotonic() - began
            going = [talk for talk in asking if talk.asked]
        return [{**talk.row, "messages": talk.said} for talk in talks if talk.said]

    def _prompt(self, talk: Talk, messages: list[Message]) -> list[int] | None:
        """Return a prompt's tokens, or None if it cannot be asked."""
        where = f"{talk.row['source']}:{talk.row['line']}"
        try:
            tools = talk.row.get("tools")
            text = render(self._template, messages, tools=tools, add_generation_prompt=True, date=self._date)
        except SpeccError as error:
            self.refused.append(f"{where} (the chat template refuses it: {error.message})")
            return None
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= self._length:
            if not talk.said:
                self.refused.append(f"{where} ({len(ids)} tokens)")
            return None
        return ids

    def _sampling(self, talk: Talk, length: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = self._options["temperature"] == 0
        stream = digest_of([self._options["seed"], talk.row["id"], len(talk.said)])
        return SamplingParams(
            temperature=self._options["temperature"],
            top_p=self._options["top_p"],
            max_tokens=min(self._options["max_tokens"], self._length - length),
            stop_token_ids=self._ends,
            seed=None if greedy else int(stream[:12], 16),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def close(self) -> None:
        """Stop the engine."""
        if self._llm is not None:
            stop(self._llm)
