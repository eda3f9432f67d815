"""Which characters of a rendered conversation the assistant wrote, and which tokens those are.

A draft learns to say what its verifier says, so a character is trained only if the verifier would have
produced it at that place: its answer and the token that ends its turn, and nothing that the template adds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from specc.core.errors import SpeccError
from specc.datagen.rows import Message, ToolCall
from specc.datagen.template import ChatTemplate, render, render_with_spans

Reason = Literal["no_answer", "template_refused", "unstable_prefix", "empty_mask", "too_long", "few_trained"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""Why a row is left out: it has no assistant turn; the template raised; the prompt that the template makes is no
prefix of the same conversation with its answer; nothing in it is trained; not one trained token fits; a smaller share
of its tokens is trained than `data.filters.min_trained_share` asks for."""

Span = tuple[int, int]
SENTINEL: Final = "0specc0"
"""An answer that no template changes: what a template writes behind it is what it writes behind every answer."""
THOUGHT: Final = "</think>"
"""Where a thought ends, in all families that open it with `<think>`."""


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

    def mark(self, messages: Sequence[Message], tools: str | None = None) -> Marked:
        r"""Return a conversation's text and trained spans; raises `LeftOutError`. `tools` is a row's JSON text of them.

        What follows the last answer is dropped: nothing there is trained, and a template may show an answer
        otherwise (without its thinking) once another question follows it.

        With generation marks the spans are the template's own. Without, the text is what the verifier is given
        before its last answer, and what it says there, up to its end-of-turn token:

            <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
            └─ render(messages[:i], add_generation_prompt=True) ─┘└── trained ───┘└┴ the template's

        Calls and thoughts are said like any other text, as the template writes them; what a tool answers is given.
        An earlier answer is trained if that text shows it as it was said; otherwise it is context.
        After an answer that `max_tokens` cut off the verifier would have gone on, so no end of turn is trained
        there, and the text ends there if it is the last.
        """
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None:
            raise LeftOutError("no_answer")
        kept = messages[: last + 1]
        self._check_shown(kept, tools)
        turns = [i for i, message in enumerate(kept) if message["role"] == "assistant"]
        mark = self._by_marks if self.template.marked else self._by_prefixes
        marked = mark(kept, turns, tools)
        if not marked.spans:
            raise LeftOutError("empty_mask")
        return marked

    def _by_prefixes(self, messages: Sequence[Message], turns: Sequence[int], tools: str | None) -> Marked:
        prompt = self._render(messages[:-1], tools, prompt=True)
        answer, end = self._answer(messages, prompt, tools)
        text, spans = prompt + answer, list[Span]()
        for i in turns[:-1]:
            before = self._render(messages[:i], tools, prompt=True)
            own = self._render(messages[: i + 1], tools)
            said, stop = self._ends(messages[: i + 1], own, tools)
            if own.startswith(before) and len(before) <= said and text.startswith(own[:stop]) and len(before) < stop:
                spans.append((len(before), stop))
        if end:
            spans.append((len(prompt), len(prompt) + end))
        return Marked(text, tuple(spans), len(turns) - len(spans))

    def _answer(self, messages: Sequence[Message], prompt: str, tools: str | None) -> tuple[str, int]:
        """Return what stands behind `prompt` when the last of `messages` was said, and where in it that ends.

        That is what the template writes there. Where it does not begin with the prompt, or where the template
        refuses the answer, it is what the verifier would have said, if that is known.
        """
        message = messages[-1]
        cut = message.get("finish") == "length"
        try:
            own = self._render(messages, tools)
            said, stop = self._ends(messages, own, tools)
            start = len(prompt) if own.startswith(prompt) else self._behind_header(messages, own, tools)
            if start is None:
                start = self._behind_question(messages, own, tools)
            if start is not None and start <= said:
                return own[start : said if cut else len(own)], stop - start
            refused = LeftOutError(
                "unstable_prefix", f"the prompt of turn {len(messages)} is no prefix of the turn's own text"
            )
        except LeftOutError as error:
            refused = error
        if (emitted := emission(message, prompt)) is None:
            raise refused
        tail = self._tail(messages, tools)
        whole = emitted + ("" if cut else tail[: self._end_of_turn(tail)])
        return whole, len(whole)

    def _behind_header(self, messages: Sequence[Message], own: str, tools: str | None) -> int | None:
        """Return where in `own` the last of `messages` begins, told by what a generation prompt ends with.

        gpt-oss's template shows what was thought before a call until a final answer follows, so that the text of
        the whole does not begin with the prompt, and yet ends with what is said behind it.
        """
        given, asked = self._render(messages[:-1], tools), self._render(messages[:-1], tools, prompt=True)
        header = asked.removeprefix(given)
        if not header or not asked.startswith(given):
            return None
        others = [self._render([*messages[:-1], other], tools) for other in stand_ins(messages[-1], thought=True)]
        found = own.rfind(header, 0, min(map(partial(shared, own), others)))
        return found + len(header) if found >= 0 else None

    def _behind_question(self, messages: Sequence[Message], own: str, tools: str | None) -> int | None:
        r"""Return where in `own` the last of `messages` begins, told by what it is behind the last question alone.

        Mistral's template writes the system prompt into the last message, and only while that is the user's: the text
        of the whole does not begin with the prompt, and yet ends with what is said behind it.

            prompt        …</s>[INST] Be brief.\n\nWhat is the capital of France?[/INST]
            own           …</s>[INST] What is the capital of France?[/INST] Paris.</s>
            question alone  <s>[INST] What is the capital of France?[/INST]├ Paris.</s>┤
        """
        if messages[-2]["role"] != "user":
            return None
        question, answer = messages[-2:]
        asked, alone = self._render([question], tools, prompt=True), self._render([question, answer], tools)
        said = alone.removeprefix(asked)
        return len(own) - len(said) if alone.startswith(asked) and said and own.endswith(said) else None

    def _by_marks(self, messages: Sequence[Message], turns: Sequence[int], tools: str | None) -> Marked:
        try:
            full, found = render_with_spans(
                self.template, messages, tools=tools, add_generation_prompt=False, date=self.date
            )
        except SpeccError as error:
            raise LeftOutError("template_refused", error.message) from error
        text, spans = full, [(start, end) for start, end in found if start < end]
        for i in turns:
            if messages[i].get("finish") != "length":
                continue
            own = self._render(messages[: i + 1], tools)
            said, _ = self._ends(messages[: i + 1], own, tools)
            if not full.startswith(own[:said]):
                raise LeftOutError("unstable_prefix", f"the cut answer of turn {i + 1} is shown otherwise later")
            spans = without(spans, (said, len(own)))
            text = full[:said] if i == turns[-1] else text
        return Marked(text, tuple(spans))

    def _check_shown(self, messages: Sequence[Message], tools: str | None) -> None:
        """Raise `LeftOutError` if the template shows tools, calls or results as if others were there, or none.

        A template that knows nothing of them leaves them out without a word. Each is given another name, and the
        text must move.
        """
        if tools:
            asked = messages[: next(i for i, message in enumerate(messages) if message["role"] == "user") + 1]
            listed = json.loads(tools)
            others = [{**tool, "function": {**tool["function"], "name": SENTINEL}} for tool in listed]
            if self._render(asked, tools) == self._render(asked, json.dumps(others, ensure_ascii=False)):
                names = ", ".join(f"`{tool['function']['name']}`" for tool in listed[:3])
                raise LeftOutError("template_refused", f"the template does not show the tools ({names})")
        for i, message in enumerate(messages):
            if message["role"] != "tool" and not message.get("tool_calls"):
                continue
            own = self._render(messages[: i + 1], tools)
            if any(own == self._render([*messages[:i], other], tools) for other in stand_ins(message)):
                what = "what a tool answered" if message["role"] == "tool" else "all of what is said and called"
                raise LeftOutError("template_refused", f"the template does not show {what} in turn {i + 1}")

    def _ends(self, messages: Sequence[Message], own: str, tools: str | None) -> tuple[int, int]:
        """Return where in `own`, the text of `messages`, the last answer ends, and where its end of turn does.

        The template's part behind an answer is found by rendering another answer in its place, so that an answer
        that the template trims, or that has special tokens' names in it, misleads nobody. A call may have an end
        of its own, which is then the last special token of the text.
        """
        tail, message = self._tail(messages, tools), messages[-1]
        if own.endswith(tail):
            said = len(own) - len(tail)
        elif message.get("tool_calls"):
            said = max((own.rfind(name) for name in self.specials if name), default=-1)
            said = len(own) if said < 0 else said
        else:
            raise LeftOutError("unstable_prefix", "the template ends this answer otherwise than another")
        return said, said + (0 if message.get("finish") == "length" else self._end_of_turn(own[said:]))

    def _tail(self, messages: Sequence[Message], tools: str | None) -> str:
        """Return what the template writes behind the last answer of conversations like `messages`."""
        roles = tuple(message["role"] + "()" * ("tool_calls" in message) for message in messages[:-1])
        roles += ("tools",) * bool(tools)
        tail = self.tails.get(roles)
        if tail is None:
            stand_in: Message = {"role": "assistant", "content": SENTINEL}
            before, found, tail = self._render([*messages[:-1], stand_in], tools).rpartition(SENTINEL)
            if not found or not before:
                raise LeftOutError("unstable_prefix", "the template does not show the assistant's content")
            self.tails[roles] = tail
        return tail

    def _end_of_turn(self, tail: str) -> int:
        """Return the length of the end-of-turn token that `tail` has first, with what stands before it; 0 if none."""
        ends = [tail.index(name) + len(name) for name in self.specials if name and name in tail]
        return min(ends, default=0)

    def _render(self, messages: Sequence[Message], tools: str | None, *, prompt: bool = False) -> str:
        try:
            return render(self.template, messages, tools=tools, add_generation_prompt=prompt, date=self.date)
        except SpeccError as error:
            raise LeftOutError("template_refused", error.message) from error


def emission(message: Message, prompt: str) -> str | None:
    r"""Return what the verifier said behind `prompt`, or None where only the template can tell.

    The verifier's own answer is its text as it was. A prompt that opens a thought, as DeepSeek R1's does, is
    followed by the thought, and by the answer behind its end:

        <｜User｜>Hi<｜Assistant｜><think>\n     A greeting.\n</think>\n\nHello!
        └───────────── prompt ────────────┘     └───────── emission ───────┘
    """
    if "finish" in message:
        return message["content"]
    said, thought = message["content"], message.get("reasoning_content")
    if thought is None and THOUGHT in said:
        thought, _, said = said.partition(THOUGHT)
        thought = thought.strip().removeprefix("<think>")
    if thought is None or message.get("tool_calls") or not prompt.rstrip().endswith("<think>"):
        return None
    return f"{thought.strip()}\n{THOUGHT}\n\n{said.lstrip()}"


def stand_ins(message: Message, *, thought: bool = False) -> list[Message]:
    """Return copies of a message, each with another text for one thing it says: content, or the name of a call.

    With `thought`, also one for what was thought, which a template need not show.
    """
    copies = list[Message]()
    if message["content"]:
        copies.append({**message, "content": SENTINEL})
    if thought and "reasoning_content" in message:
        copies.append({**message, "reasoning_content": SENTINEL})
    calls = message.get("tool_calls", [])
    for number, call in enumerate(calls):
        other: ToolCall = {**call, "function": {**call["function"], "name": SENTINEL}}
        copies.append({**message, "tool_calls": [*calls[:number], other, *calls[number + 1 :]]})
    return copies


def shared(one: str, other: str) -> int:
    """Return with how many characters both texts begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
