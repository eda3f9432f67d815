"""Chat templates: rendered as transformers does, on a pinned day, with the spans of what is generated."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from small import CHATML, CHATML_MARKED, make_tokenizer
from specc.core.errors import SpeccError
from specc.datagen.rows import Message
from specc.datagen.template import ChatTemplate, render, render_with_spans
from talks import SPECIALS, cases

TALK: list[Message] = [
    {"role": "user", "content": "How do I make <b>bread</b> rise?"},
    {"role": "assistant", "content": "Wait."},
    {"role": "user", "content": "Why?"},
]
DAY = "2026-01-02"


def shown(source: str, *, prompt: bool = True) -> str:
    return render(ChatTemplate.parse(source), TALK, add_generation_prompt=prompt, date=DAY)


def test_the_day_is_the_given_one() -> None:
    assert shown("{{ strftime_now('%d %b %Y %H:%M') }}") == "02 Jan 2026 00:00"


def test_arguments_of_the_spec_reach_every_text() -> None:
    template = ChatTemplate.parse("{{ effort }} {{ messages | length }}", arguments={"effort": "low", "messages": []})
    assert render(template, TALK, add_generation_prompt=True, date=DAY) == f"low {len(TALK)}"
    assert render_with_spans(template, TALK, add_generation_prompt=True, date=DAY) == (f"low {len(TALK)}", [])


def test_what_templates_are_written_for() -> None:
    assert shown("{%- for m in messages %}\n  {{ m.role }}\n{%- endfor %}\n") == "  user  assistant  user"
    assert shown("{{ messages[0].content | tojson }}") == '"How do I make <b>bread</b> rise?"'
    assert shown("{{ {'é': [1]} | tojson(indent=1) }}") == '{\n "é": [\n  1\n ]\n}'
    assert shown("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}x{% endfor %}") == "x"
    assert shown("{{ tools is none }}{{ documents is none }}{{ nothing is defined }}") == "TrueTrueFalse"
    assert shown("{{ add_generation_prompt }}", prompt=False) == "False"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10000000) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_refusals(source: str, message: str) -> None:
    with pytest.raises(SpeccError, match=message):
        shown(source)


def test_not_a_template() -> None:
    with pytest.raises(SpeccError, match="cannot be compiled") as raised:
        ChatTemplate.parse("\n{% for %}")
    assert raised.value.where == "chat template, line 2"


def test_spans() -> None:
    template = ChatTemplate.parse(CHATML_MARKED)
    assert template.marked
    text, spans = render_with_spans(template, TALK, add_generation_prompt=True, date=DAY)
    assert text == shown(CHATML)
    assert [text[start:end] for start, end in spans] == ["Wait.<|im_end|>"]


def test_spans_in_macros_captures_and_filters() -> None:
    source = (
        "{% macro say(m) %}{% generation %}{{ m.content }}{% generation %}!{% endgeneration %}{% endgeneration %}"
        "{% endmacro %}{% set all %}[{{ say(messages[1]) }}]{% endset %}{{ '<' + all | upper + '>' }}"
        "{{ say(messages[2]) }}"
    )
    text, spans = render_with_spans(ChatTemplate.parse(source), TALK, add_generation_prompt=False, date=DAY)
    assert text == "<[WAIT.!]>Why?!"
    assert [text[start:end] for start, end in spans] == ["WAIT.!", "Why?!"]


def test_marks_that_change_the_text() -> None:
    source = "{% set said %}{% generation %}x{% endgeneration %}{% endset %}{{ said | length }}"
    with pytest.raises(SpeccError, match="change its text"):
        render_with_spans(ChatTemplate.parse(source), TALK, add_generation_prompt=False, date=DAY)


@pytest.mark.parametrize("source", [CHATML, "{# {% generation %} #}{{ '{% generation %}' }}", "generation"])
def test_not_marked(source: str) -> None:
    assert not ChatTemplate.parse(source).marked


def test_where_templates_are(tmp_path: Path) -> None:
    with pytest.raises(SpeccError, match="no chat template"):
        ChatTemplate.load(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]}')
    assert ChatTemplate.load(tmp_path).source == "d"
    config.write_text('{"chat_template": "{{ bos_token }}", "bos_token": {"content": "<s>"}, "eos_token": null}')
    found = ChatTemplate.load(tmp_path)
    assert (found.source, found.special_tokens) == ("{{ bos_token }}", {"bos_token": "<s>"})
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.load(tmp_path).source == "file"
    config.write_text("[")
    with pytest.raises(SpeccError, match="not JSON"):
        ChatTemplate.load(tmp_path)


@pytest.mark.engine
def test_as_transformers_renders(tmp_path: Path) -> None:
    import json

    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    today = date.fromisoformat(DAY).strftime
    shown = Counter[str]()
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja")):
        folder = tmp_path / path.stem
        make_tokenizer(folder, path.read_text(), specials=SPECIALS[path.stem])
        theirs, ours = AutoTokenizer.from_pretrained(folder), ChatTemplate.load(folder)
        for said in cases(SPECIALS[path.stem][2]).values():
            tools = said.get("tools")
            for prompt in (False, True):
                talk = said["messages"][:-1] if prompt else said["messages"]
                try:
                    expected: str | None = theirs.apply_chat_template(
                        ours.shown(talk or said["messages"]), tools=json.loads(tools) if tools else None,
                        tokenize=False, add_generation_prompt=prompt, strftime_now=today,
                    )  # fmt: skip
                except TemplateError:
                    expected = None
                try:
                    found = render(ours, talk or said["messages"], tools=tools, add_generation_prompt=prompt, date=DAY)
                except SpeccError:
                    found = None
                assert found == expected
                shown[path.stem] += found is not None
    assert min(shown.values()) >= 24  # Gemma's knows no system turn, and refuses nothing else
