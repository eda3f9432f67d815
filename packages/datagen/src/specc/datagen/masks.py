"""Which characters of a rendered conversation the assistant wrote, and which tokens those are.

A draft learns to say what its verifier says, so a character is trained only if the verifier would have
produced it at that place: its answer and the token that ends its turn, and nothing that the template adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from specc.core.errors import SpeccError
from specc.datagen.rows import Message
from specc.datagen.template import ChatTemplate, render, render_with_spans

Reason = Literal["no_answer", "template_refused", "unstable_prefix", "empty_mask", "too_long"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Why a row is left out: it has no assistant turn; the template raised; the prompt that the template makes is no
prefix of the same conversation with its answer; nothing in it is trained; not one trained token fits."""

Span = tuple[int, int]
SENTINEL: Final = "0specc0"
"""An answer that no template changes: what a template writes behind it is what it writes behind every answer."""


class LeftOutError(Exception):
    """A row that cannot be trained on."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail or reason


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendered conversation: its text, its trained character spans in order, and how many turns are context only."""

    text: str
    spans: tuple[Span, ...]
    context_turns: int = 0


@dataclass(slots=True)
class Masker:
    """Renders conversations with one chat template and marks what the assistant wrote.

    `specials` are the texts of the tokenizer's special tokens and of all tokens that end the verifier's turn;
    `date` is the day that the template may print. `tails` remembers what the template writes behind an answer.
    """

    template: ChatTemplate
    specials: Sequence[str]
    date: str
    tails: dict[tuple[str, ...], str] = field(default_factory=dict[tuple[str, ...], str])

    def mark(self, messages: Sequence[Message]) -> Marked:
        r"""Return a conversation's text and trained spans; raises `LeftOutError`.

        What follows the last answer is dropped: nothing there is trained, and a template may show an answer
        otherwise (without its thinking) once another question follows it.

        With generation marks the spans are the template's own. Without, turn i's answer starts where the prompt
        `render(messages[:i], add_generation_prompt=True)` ends and runs to its end-of-turn token:

            <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
            └────────────────── the prompt ──────────────────────┘└── trained ───┘└┴ the template's

        A turn that the whole conversation shows otherwise than when it was said is context and not trained.
        After an answer that `max_tokens` cut off the verifier would have gone on, so no end of turn is trained
        there, and the text ends there if it is the last.
        """
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None:
            raise LeftOutError("no_answer")
        kept = messages[: last + 1]
        turns = [i for i, message in enumerate(kept) if message["role"] == "assistant"]
        marked = self._by_marks(kept, turns) if self.template.marked else self._by_prefixes(kept, turns)
        if not marked.spans:
            raise LeftOutError("empty_mask")
        return marked

    def _by_prefixes(self, messages: Sequence[Message], turns: Sequence[int]) -> Marked:
        full = self._render(messages)
        text, spans = full, list[Span]()
        for i in turns:
            prompt = self._render(messages[:i], prompt=True)
            own = full if i == turns[-1] else self._render(messages[: i + 1])
            said = self._said(messages[: i + 1], own)
            if not own.startswith(prompt) or said < len(prompt):
                raise LeftOutError("unstable_prefix", f"the prompt of turn {i + 1} is no prefix of the turn's own text")
            if messages[i].get("finish") == "length":
                end = said
                text = full[:said] if i == turns[-1] else text
            else:
                end = said + self._end_of_turn(own[said:])
            if full.startswith(own[:end]) and len(prompt) < end:
                spans.append((len(prompt), end))
        return Marked(text, tuple(spans), len(turns) - len(spans))

    def _by_marks(self, messages: Sequence[Message], turns: Sequence[int]) -> Marked:
        try:
            full, found = render_with_spans(self.template, plain(messages), add_generation_prompt=False, date=self.date)
        except SpeccError as error:
            raise LeftOutError("template_refused", error.message) from error
        text, spans = full, [(start, end) for start, end in found if start < end]
        for i in turns:
            if messages[i].get("finish") != "length":
                continue
            own = self._render(messages[: i + 1])
            said = self._said(messages[: i + 1], own)
            if not full.startswith(own[:said]):
                raise LeftOutError("unstable_prefix", f"the cut answer of turn {i + 1} is shown otherwise later")
            spans = without(spans, (said, len(own)))
            text = full[:said] if i == turns[-1] else text
        return Marked(text, tuple(spans))

    def _said(self, messages: Sequence[Message], own: str) -> int:
        """Return where the last answer's own text ends in `own`, the text of `messages`.

        The template's part behind an answer is found by rendering another answer in its place, so that an answer
        that the template trims, or that has special tokens' names in it, misleads nobody.
        """
        roles = tuple(message["role"] for message in messages)
        tail = self.tails.get(roles)
        if tail is None:
            stand_in: Message = {"role": "assistant", "content": SENTINEL}
            before, found, tail = self._render([*messages[:-1], stand_in]).rpartition(SENTINEL)
            if not found or not before:
                raise LeftOutError("unstable_prefix", "the template does not show the assistant's content")
            self.tails[roles] = tail
        if not own.endswith(tail):
            raise LeftOutError("unstable_prefix", "the template ends this answer otherwise than another")
        return len(own) - len(tail)

    def _end_of_turn(self, tail: str) -> int:
        """Return the length of the end-of-turn token that `tail` has first, with what stands before it; 0 if none."""
        ends = [tail.index(name) + len(name) for name in self.specials if name and name in tail]
        return min(ends, default=0)

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        try:
            return render(self.template, plain(messages), add_generation_prompt=prompt, date=self.date)
        except SpeccError as error:
            raise LeftOutError("template_refused", error.message) from error


def plain(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Return the messages as a chat template knows them: roles and contents."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def without(spans: Iterable[Span], hole: Span) -> list[Span]:
    """Return `spans` less the characters of `hole`.

    spans   ├───────┤   ├────┤
    hole         ├────────┤
    result  ├────┤        ├──┤
    """
    start, end = hole
    pieces = [piece for a, b in spans for piece in ((a, min(b, start)), (max(a, end), b))]
    return sorted({(a, b) for a, b in pieces if a < b})


def token_mask(offsets: NDArray[np.int64], spans: Sequence[Span]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    r"""Return the loss mask `[tokens]` of 0 and 1, and the token behind each span `[spans]`.

    `offsets` are the tokens' character ranges `[tokens, 2]` in order. A token counts as trained if all of its
    characters are; one that straddles the border holds text that the verifier was given, not asked for:

    text     assistant \n \n Hey <eot>
    span                  ├───────────┤      the answer starts with an empty line
    tokens   ├───────┤ ├───┤ ├─┤ ├───┤
    mask         0       0    1    1
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    mask = np.zeros(len(offsets), np.uint8)
    behind = np.zeros(len(spans), np.int64)
    for number, (start, end) in enumerate(spans):
        first = int(np.searchsorted(starts, start, "left"))
        # A token without characters at the border (a byte-level tokenizer's prefix, say) belongs behind it.
        stop = min(int(np.searchsorted(ends, end, "right")), int(np.searchsorted(starts, end, "left")))
        mask[first:stop] = 1
        behind[number] = stop
    return mask, behind


def cut_at(mask: NDArray[np.uint8], behind: NDArray[np.int64], length: int) -> int:
    """Return how many of a row's tokens to keep, at most `length`; raises `LeftOutError` if none is trained.

    A row that is too long ends with the last answer that fits whole, or inside the first if none does.
    """
    if not mask.any():
        raise LeftOutError("empty_mask")
    if len(mask) <= length:
        return len(mask)
    fitting = behind[(behind <= length) & (behind > 0)]
    kept = int(fitting[-1]) if len(fitting) and mask[: fitting[-1]].any() else length
    if not mask[:kept].any():
        raise LeftOutError("too_long")
    return kept
