"""Conversations on their way to being answered: what is asked next, as whose tokens, and how the answer is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from specc.core.errors import SpeccError
from specc.core.files import digest_of
from specc.datagen.masks import SENTINEL
from specc.datagen.rows import Message, Row
from specc.datagen.template import ChatTemplate, render
from specc.datagen.vision import eyes_of, images_of


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


def sampled(rows: Iterable[Row], samples: int) -> list[Row]:
    """Return each row so many times, one after another: the first as it is, the others with ids of their own.

    Of several samples, `row` counts conversations: it is the prompt's times `samples`, plus the sample's.
    """
    return [
        {
            **row,
            "id": digest_of([row["id"], sample]) if sample else row["id"],
            "row": row["row"] * samples + sample,
        }
        for row in rows
        for sample in range(samples)
    ]


def in_channels(template: ChatTemplate, specials: Iterable[str], date: str) -> bool:
    """Tell whether special tokens stand inside an answer, as gpt-oss's channels do: its text is none without them."""
    asked: list[Message] = [{"role": "user", "content": "?"}]
    try:
        prompt = render(template, asked, add_generation_prompt=True, date=date)
        said = render(
            template, [*asked, {"role": "assistant", "content": SENTINEL}], add_generation_prompt=False, date=date
        )
    except SpeccError:
        return False  # each row says so itself
    before = said.removeprefix(prompt).partition(SENTINEL)[0]
    return said.startswith(prompt) and any(name in before for name in specials)


class Asker:
    """The prompts of a verifier's conversations, by its own tokenizer and template, and how answers are drawn."""

    def __init__(self, verifier: Path, params: Mapping[str, Any]) -> None:
        """Read tokenizer and template from a verifier's folder; `params` are the stage's."""
        from specc.datagen.tokens import load_tokenizer, special_tokens, template_of

        self.options: Mapping[str, Any] = params["data"]["responses"]
        self.length: int = params["data"]["sequence_length"]
        self.refused: list[str] = []
        """Where rows stood that were left out, and why."""
        self._date: str = params["date"]
        self._ends: list[int] = params["verifier"]["config"]["eos_token_ids"]
        self._tokenizer, config = load_tokenizer(verifier), params["verifier"]["config"]
        self._eyes = eyes_of(verifier, config)
        self.template = template_of(verifier, self._tokenizer, config, self.options.get("template"))
        self._whole = in_channels(self.template, special_tokens(self._tokenizer).values(), self._date)

    def begin(self, rows: Sequence[Row]) -> list[Talk]:
        """Return the rows' conversations, without those that ask for nothing."""
        talks = [Talk.of(row) for row in rows]
        for talk in talks:
            if not talk.asked:
                self.refuse(talk, "its tokens are given, and nothing asks for an answer")
        return [talk for talk in talks if talk.asked]

    def refuse(self, talk: Talk, why: str) -> None:
        """Remember that a row is left out."""
        self.refused.append(f"{talk.row['source']}:{talk.row['line']} ({why})")

    def prompt(self, talk: Talk, messages: Sequence[Message]) -> list[int] | None:
        """Return a prompt's tokens, all of those of images too, or None if it cannot be asked."""
        try:
            ids = self.encode(messages, talk.row.get("tools"))
        except SpeccError as error:
            self.refuse(talk, f"the chat template refuses it: {error.message}")
            return None
        if self._eyes is not None:
            try:
                ids, _ = self._eyes.unfolded(ids, images_of(messages))
            except ValueError as error:
                self.refuse(talk, f"its text has {error}")
                return None
        if len(ids) >= self.length:
            if not talk.said:
                self.refuse(talk, f"{len(ids)} tokens")
            return None
        return ids

    def encode(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """Return the tokens that the verifier is given before its answer; raises `SpeccError` as `render` does."""
        text = self.text(messages, tools)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, messages: Sequence[Message], tools: str | None = None) -> str:
        """Return the text of the same."""
        return render(self.template, messages, tools=tools, add_generation_prompt=True, date=self._date)

    def sampling(self, talk: Talk, turn: int, length: int) -> dict[str, Any]:
        """Return how the answer is drawn that will be a conversation's `turn`, behind a prompt of `length` tokens.

        The names are vLLM's. A random stream depends on the row and the turn, not on neighbours or places.
        """
        options = self.options
        drawn = {} if options["temperature"] == 0 else {"seed": self.stream(talk, turn)}
        return {
            "temperature": options["temperature"],
            "top_p": options["top_p"],
            "max_tokens": min(options["max_tokens"], self.length - length),
            "stop_token_ids": self._ends,
            "skip_special_tokens": not self._whole,
            **drawn,
        }

    def stream(self, talk: Talk, turn: int) -> int:
        """Return the seed, of 48 bits, of an answer's random stream."""
        return int(digest_of([self.options["seed"], talk.row["id"], turn])[:12], 16)


class Writer(Protocol):
    """What answers conversations: vLLM in this process, or a server."""

    refused: list[str]
    tokens: int
    """Tokens written so far."""
    seconds: float
    """The time that it took."""

    def answer(self, rows: Sequence[Row], done: Callable[[int, str], None]) -> list[Row]:
        """Return the rows with every answer written anew, in their order, less those that were refused.

        `done` is called with the number of rows that are through, and a word on the speed.
        """
        ...

    def close(self) -> None:
        """Let go of whatever answers."""
        ...
