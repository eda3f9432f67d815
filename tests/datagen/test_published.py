"""Masks with the templates that models are published with, held to the marks that TRL puts into the same templates.

The package `trl` has both: `NAME.jinja` as a model's repository has it, and `NAME_training.jinja` with
`{% generation %}` blocks. `tools/install.sh` installs it alone, and only its text files are read here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from specc.core.errors import SpeccError
from specc.datagen.masks import LeftOutError, Marked, Masker
from specc.datagen.rows import Said
from specc.datagen.template import ChatTemplate, render
from talks import SPECIALS, cases

PUBLISHED = {
    "deepseek_r1_distill": ("deepseek-r1", 2),
    "gemma": ("gemma", 12),
    "gemma3": ("gemma3", 13),
    "gptoss": ("gpt-oss", 16),
    "llama3": ("llama3", 13),
    "phi3": ("phi3", 13),
    "qwen2_5": ("qwen2.5", 19),
    "qwen3": ("qwen3", 8),
    "qwen3_5_think": ("qwen3.5", 11),
    "qwen3_instruct_2507": ("qwen3", 19),
}
"""TRL's names of templates, whose special tokens they write, and how many of the conversations are compared.

The others are left out by one of both, or TRL's version shows another text: thoughts of earlier turns, and in gpt-oss's
the history without the thoughts that the prompt of the last answer had.
"""
DAY = "2026-11-23"


def folder() -> Path:
    package = find_spec("trl")
    if package is None or package.origin is None:
        pytest.skip("trl is not installed")
    return Path(package.origin).parent / "chat_templates"


def masker(name: str, file: str) -> Masker:
    specials = SPECIALS[PUBLISHED[name][0]]
    named = {"bos_token": specials[1], "eos_token": specials[2]}
    return Masker(ChatTemplate.parse((folder() / file).read_text(), named), specials, DAY)


def mark(masker: Masker, said: Said) -> Marked | None:
    try:
        return masker.mark(said["messages"], said.get("tools"))
    except LeftOutError:
        return None


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_trained_is_what_trl_marks(name: str) -> None:
    plain, marked = masker(name, f"{name}.jinja"), masker(name, f"{name}_training.jinja")
    assert not plain.template.marked
    assert marked.template.marked
    family, least = PUBLISHED[name]
    compared = 0
    for said in cases(SPECIALS[family][2]).values():
        ours, theirs = mark(plain, said), mark(marked, said)
        if ours is None or theirs is None or ours.text != theirs.text:
            continue
        first = next(i for i, message in enumerate(said["messages"]) if message["role"] == "user") + 1
        asked = render(plain.template, said["messages"][:first], add_generation_prompt=True, date=DAY)
        ends = [theirs.text[start:end].rstrip("\n") == SPECIALS[family][2] for start, end in theirs.spans]
        assert len(ends) - sum(ends) == len(ours.spans) + ours.context_turns  # Phi 3's marks hold a last token apart
        for start, end in ours.spans:
            before, behind = next(span for span in theirs.spans if span[0] <= start and end <= span[1])
            # TRL also marks the newline behind a turn, and in some templates the header that the prompt ends with.
            assert asked.endswith(ours.text[before:start])
            assert ours.text[end:behind] in ("", "\n")
        compared += 1
    assert compared >= least


@pytest.mark.parametrize("name", ["llama3_1", "qwen3_8", "llama3_2"])
def test_what_is_trained_is_what_stands_behind_the_prompt(name: str) -> None:
    file = folder() / f"{name}.jinja"
    specials = SPECIALS["qwen3" if name.startswith("qwen") else "llama3.1"]
    template = ChatTemplate.parse(file.read_text(), {"bos_token": specials[1], "eos_token": specials[2]})
    for title, said in cases(specials[2]).items():
        messages, tools = said["messages"], said.get("tools")
        if messages[-1]["role"] != "assistant" or (found := mark(Masker(template, specials, DAY), said)) is None:
            continue
        prompt = render(template, messages[:-1], tools=tools, add_generation_prompt=True, date=DAY)
        assert found.text[: found.spans[-1][0]] == prompt, title


def test_a_published_template_that_drops_calls_is_noticed() -> None:
    said = cases(SPECIALS["deepseek-r1"][2])["a call at the end"]
    with pytest.raises(LeftOutError, match=r"does not show the tools \(`weather`\)"):
        masker("deepseek_r1_distill", "deepseek_r1_distill.jinja").mark(said["messages"], said.get("tools"))
    with pytest.raises(LeftOutError, match="does not show all of what is said and called in turn 2"):
        masker("deepseek_r1_distill", "deepseek_r1_distill.jinja").mark(said["messages"])
    template = ChatTemplate.parse((folder() / "llama3_1.jinja").read_text())
    two = cases("<|eot_id|>")["two calls at once"]
    with pytest.raises(SpeccError, match="single tool-calls"):
        render(template, two["messages"], tools=two.get("tools"), add_generation_prompt=False, date=DAY)
