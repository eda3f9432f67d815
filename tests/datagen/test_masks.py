"""Loss masks, held to golden files that a person can read.

`templates/NAME.jinja` are small templates in the manner of the families they are called after; `templates/NAME.txt`
shows what is trained of each conversation below between `⟦` and `⟧`, token by token, `⏎` standing at each newline.
`SPECC_WRITE_GOLDEN=1 pytest tests/datagen/test_masks.py` writes them anew: read the difference before it is kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from small import make_tokenizer
from specc.datagen.masks import LeftOutError, Masker, cut_at, token_mask, without
from specc.datagen.rows import Said
from specc.datagen.shapes import read_row
from specc.datagen.template import ChatTemplate, render
from specc.datagen.tokens import Encoder
from talks import BREAD, CHATML, PARIS, SPECIALS, SYSTEM, WEATHER, answered, call, cases

TEMPLATES = Path(__file__).parent / "templates"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    made: dict[str, Encoder] = {}
    for name, specials in SPECIALS.items():
        folder = tmp_path_factory.mktemp(name)
        tokenizer = make_tokenizer(folder, (TEMPLATES / f"{name}.jinja").read_text(), specials=specials)
        config = {"vocab_size": 512, "eos_token_ids": [tokenizer.token_to_id(specials[2])]}
        params = {"verifier": {"config": config}, "data": {"sequence_length": 512}, "date": "2026-11-23"}
        made[name] = Encoder.load(folder, params)
    return made


def show(encoder: Encoder, said: Said) -> str:
    """Return a conversation's text with its trained tokens between brackets."""
    try:
        marked = encoder.masker.mark(said["messages"], said.get("tools"))
    except LeftOutError as error:
        return f"left out: {error.reason} ({error.detail})"
    encoding = encoder.tokenizer.encode(marked.text, add_special_tokens=False)
    mask, _ = token_mask(np.array(encoding.offsets, np.int64), marked.spans)
    trained = np.zeros(len(marked.text) + 2, bool)
    for (start, end), one in zip(encoding.offsets, mask, strict=True):
        trained[start + 1 : end + 1] = one
    brackets = {(False, True): "⟦", (True, False): "⟧"}
    pieces = [
        brackets.get((bool(trained[i]), bool(trained[i + 1])), "") + (marked.text[i : i + 1])
        for i in range(len(marked.text) + 1)
    ]
    context = f"context turns: {marked.context_turns}\n" if marked.context_turns else ""
    return context + "".join(pieces).replace("\n", "⏎\n")


@pytest.mark.parametrize("name", SPECIALS)
def test_golden(name: str, encoders: dict[str, Encoder]) -> None:
    shown = {title: show(encoders[name], said) for title, said in cases(SPECIALS[name][2]).items()}
    text = "\n\n".join(f"=== {title}\n{body}" for title, body in shown.items()) + "\n"
    golden = TEMPLATES / f"{name}.txt"
    if os.environ.get("SPECC_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_thought_in_the_generation_prompt_is_stable_where_the_history_shows_it(tmp_path: Path) -> None:
    source = (
        (TEMPLATES / "qwen3.jinja")
        .read_text()
        .replace("assistant\\n' -}}\n{%- endif", "assistant\\n<think>\\n' -}}\n{%- endif")
    )
    make_tokenizer(tmp_path, source)
    masker = Masker(ChatTemplate.load(tmp_path), CHATML, "2026-11-23")
    marked = masker.mark(answered("Yeast.\n</think>\n\nWait."))
    ((start, end),) = marked.spans
    assert marked.text[:start].endswith("<|im_start|>assistant\n<think>\n")
    assert marked.text[start:end] == "Yeast.\n</think>\n\nWait.<|im_end|>"


def test_the_verifiers_own_answer_is_trained_as_it_was(encoders: dict[str, Encoder]) -> None:
    r"""What R1 and gpt-oss write is no content that their templates show; what was said behind the prompt is known."""
    thought = "Yeast.\n</think>\n\nWait."
    said = {"messages": answered(thought, finish="stop")}
    assert show(encoders["deepseek-r1"], said).endswith(
        f"<think>\n⟦{thought}<｜end▁of▁sentence｜>⟧".replace("\n", "⏎\n")
    )
    channels = "<|channel|>analysis<|message|>Yeast.<|end|><|start|>assistant<|channel|>final<|message|>Wait."
    said = {"messages": answered(channels, finish="stop")}
    assert show(encoders["gpt-oss"], said).endswith(f"<|start|>assistant⟦{channels}<|return|>⟧")
    cut = {"messages": answered(channels, finish="length")}
    assert show(encoders["gpt-oss"], cut).endswith(f"<|start|>assistant⟦{channels}⟧")


KNOWING = ["deepseek-v3", "gpt-oss", "llama3.1", "llama4", "mistral-v3", "qwen2.5", "qwen3", "qwen3.5"]
"""Templates that show tools and calls."""
words = st.text("abc é🍞\n{}\"'", min_size=1, max_size=12).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Said, list[str], list[str]]:
    """A conversation with tools, what its assistant says in it, and what it is given."""
    messages, says, given = list[dict[str, Any]](), list[str](), list[str]()
    for turn in range(draw(st.integers(1, 3))):
        given.append(f"G{turn}q")
        messages.append({"role": "user", "content": f"G{turn}q{draw(words)}"})
        for step in range(draw(st.integers(0, 2))):
            says.append(f"S{turn}{step}c")
            arguments = {f"S{turn}{step}c": draw(words)}
            messages.append({"role": "assistant", "tool_calls": [{"name": f"f{step}", "arguments": arguments}]})
            given.append(f"G{turn}{step}r")
            messages.append({"role": "tool", "content": f"G{turn}{step}r{draw(words)}"})
        says.append(f"S{turn}a")
        messages.append({"role": "assistant", "content": f"S{turn}a{draw(words)}"})
    return read_row({"messages": messages, "tools": [WEATHER]}), says, given


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", KNOWING)
@given(case=conversations())
def test_what_is_said_is_trained_or_context_and_what_is_given_is_neither(
    name: str, case: tuple[Said, list[str], list[str]], encoders: dict[str, Encoder]
) -> None:
    said, says, given = case
    masker = encoders[name].masker
    marked = masker.mark(said["messages"], said.get("tools"))
    trained = [marked.text[start:end] for start, end in marked.spans]
    assert all(mark in marked.text for mark in (*says, *given))
    assert not any(mark in text for mark in given for text in trained)
    assert len(trained) + marked.context_turns == len(says)
    assert [sum(mark in text for mark in says) for text in trained] == [1] * len(trained)
    assert says[-1] in trained[-1]
    asked = {"tools": said.get("tools"), "add_generation_prompt": True, "date": masker.date}
    assert marked.text[: marked.spans[-1][0]] == render(masker.template, said["messages"][:-1], **asked)
    again = Masker(masker.template, masker.specials, masker.date).mark(said["messages"], said.get("tools"))
    assert again == marked, "what is remembered of other conversations decides nothing"


CALLED = call("Paris")["tool_calls"]


@pytest.mark.parametrize(
    "last", [PARIS[1], {"role": "assistant", "content": "", "tool_calls": CALLED}], ids=["said", "called"]
)
def test_a_system_prompt_in_the_last_question_is_what_the_verifier_was_asked_with(
    last: Any, encoders: dict[str, Encoder]
) -> None:
    """Mistral's template moves the system prompt with every question, and drops it behind an answer."""
    said = read_row({"messages": [*SYSTEM, *BREAD, PARIS[0], last], "tools": [WEATHER]})
    masker, tools = encoders["mistral-v3"].masker, said.get("tools")
    marked = masker.mark(said["messages"], tools)
    asked = render(masker.template, said["messages"][:-1], tools=tools, add_generation_prompt=True, date=masker.date)
    ((start, end),) = marked.spans
    assert (marked.text[:start], marked.context_turns) == (asked, 1)
    assert "Be brief.\n\nWhat is the capital of France?" in asked
    assert marked.text[start:end] == (
        " Paris.</s>" if last is PARIS[1] else
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "call00001"}]</s>'
    )  # fmt: skip


def test_a_template_that_hides_answers_is_refused(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "{{ messages[0].content }}")
    with pytest.raises(LeftOutError, match="the template does not show the assistant's content"):
        Masker(ChatTemplate.load(tmp_path), CHATML, "2026-11-23").mark(BREAD)


def test_marks_around_nothing_leave_an_empty_mask(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "{% generation %}{% endgeneration %}{{ messages[0].content }}")
    with pytest.raises(LeftOutError, match="empty_mask"):
        Masker(ChatTemplate.load(tmp_path), CHATML, "2026-11-23").mark(BREAD)


def test_without_as_drawn() -> None:
    assert without([(0, 8), (12, 17)], (5, 14)) == [(0, 5), (14, 17)]
    assert without([(0, 8)], (2, 4)) == [(0, 2), (4, 8)]
    assert without([(2, 4)], (0, 8)) == []


def test_token_mask_as_drawn() -> None:
    offsets = np.array([(0, 9), (9, 11), (11, 14), (14, 19)])
    mask, behind = token_mask(offsets, [(10, 19)])
    assert mask.tolist() == [0, 0, 1, 1]
    assert behind.tolist() == [4]


@st.composite
def tokenised(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Tokens with characters of their own, shared characters (byte fallback) and none, and disjoint spans."""
    offsets, at = list[tuple[int, int]](), 0
    for width, times in draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=12)):
        offsets += [(at, at + width)] * times
        at += width
    marks = sorted(draw(st.sets(st.integers(0, at), max_size=6)))
    return offsets, [(a, b) for a, b in zip(marks[::2], marks[1::2], strict=False) if a < b]


@given(tokenised())
def test_token_mask_against_its_plain_twin(case: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> None:
    offsets, spans = case
    mask, behind = token_mask(np.array(offsets, np.int64).reshape(-1, 2), spans)
    plain = [int(any(a <= start < b and end <= b for a, b in spans)) for start, end in offsets]
    assert mask.tolist() == plain
    assert len(behind) == len(spans)


def test_long_rows_end_with_a_whole_answer() -> None:
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1], np.uint8)
    behind = np.array([4, 9, 12])
    assert [cut_at(mask, behind, length) for length in (12, 11, 9, 8, 4)] == [12, 9, 9, 4, 4]
    assert cut_at(mask, behind, 3) == 3  # inside the first answer, for none fits whole
    for length in (1, 2):
        with pytest.raises(LeftOutError, match="too_long"):
            cut_at(mask, behind, length)
    with pytest.raises(LeftOutError, match="empty_mask"):
        cut_at(np.zeros(4, np.uint8), np.zeros(0, np.int64), 8)
