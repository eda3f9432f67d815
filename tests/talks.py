"""Conversations for chat templates, and the special tokens of the families in `datagen/templates`."""

from __future__ import annotations

from typing import Any

from specc.datagen.rows import Message, Said
from specc.datagen.shapes import read_row

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SENTENCEPIECE = ("<unk>", "<s>", "</s>")
LLAMA3 = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>")
GEMMA = ("<unk>", "<bos>", "<end_of_turn>", "<start_of_turn>", "<eos>")
TOOL_MARKS = tuple(f"<｜tool▁{mark}｜>" for mark in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep",
                   "outputs▁begin", "outputs▁end", "output▁begin", "output▁end"))  # fmt: skip
DEEPSEEK = ("<unk>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", *TOOL_MARKS)
SPECIALS: dict[str, tuple[str, ...]] = {
    "chatml": CHATML,
    "chatml-marked": CHATML,
    "deepseek-r1": DEEPSEEK,
    "deepseek-v3": DEEPSEEK,
    "gemma": GEMMA,
    "gemma3": GEMMA,
    "gpt-oss": ("<|endoftext|>", "<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>",
                "<|call|>"),
    "llama2": SENTENCEPIECE,
    "llama3": ("<unk>", *LLAMA3),
    "llama3.1": ("<unk>", *LLAMA3),
    "llama4": ("<unk>", "<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<|python_start|>",
               "<|python_end|>"),
    "mistral": (*SENTENCEPIECE, "[INST]", "[/INST]"),
    "mistral-v3": (*SENTENCEPIECE, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
                   "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    "phi3": ("<unk>", "<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    "phi4": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
    "qwen2.5": CHATML,
    "qwen3": CHATML,
    "qwen3.5": CHATML,
    "smollm2": CHATML,
    "smollm3": CHATML,
    "thinking-prompt": CHATML,
    "vicuna": SENTENCEPIECE,
}  # fmt: skip
"""Unknown, first, last and further special tokens of each family."""

BREAD: list[Message] = [
    {"role": "user", "content": "How do I make bread rise?"},
    {"role": "assistant", "content": "Mix flour, water and yeast, then wait."},
]
PARIS: list[Message] = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
SYSTEM: list[Message] = [{"role": "system", "content": "Be brief."}]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a day.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASKED = {"role": "user", "content": "Will it rain in Paris?"}
THOUGHT = "The weather is what a tool knows."


def call(*cities: str, **more: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}} for city in cities]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def with_tools(*messages: Any) -> Said:
    return read_row({"messages": list(messages), "tools": [WEATHER]})


def answered(content: str, **extra: Any) -> list[Message]:
    return [BREAD[0], {"role": "assistant", "content": content, **extra}]


def cases(eos: str) -> dict[str, Said]:
    said = {"role": "assistant", "content": "Yes."}
    again = [{"role": "user", "content": "And in Lyon?"}, {"role": "assistant", "content": "No."}]
    thought = read_row({"messages": [ASKED, {**said, "reasoning": THOUGHT}]})["messages"]
    return {title: {"messages": messages} for title, messages in plain_cases(eos).items()} | {
        "a thought apart": {"messages": thought},
        "a thought apart before": {"messages": thought + PARIS},
        "a call at the end": with_tools(ASKED, call("Paris")),
        "a call, its result and an answer": with_tools(*SYSTEM, ASKED, call("Paris"), result('{"rain": true}'), said),
        "two calls at once": with_tools(ASKED, call("Paris", "Lyon"), result("rain"), result("sun"), said),
        "words beside a call": with_tools(ASKED, call("Paris", content="Let me look."), result("rain"), said),
        "a thought before a call": with_tools(
            ASKED, call("Paris", reasoning=THOUGHT), result("rain"), {**said, "reasoning": "It says rain."}
        ),
        "calls in an earlier turn": with_tools(ASKED, call("Paris"), result("rain"), said, *again),
    }


def plain_cases(eos: str) -> dict[str, list[Message]]:
    thought = "<think>\nA question of yeast.\n</think>\n\nWait."
    return {
        "one turn": BREAD,
        "two turns": BREAD + PARIS,
        "system": SYSTEM + BREAD + PARIS,
        "a question without an answer at the end": BREAD + PARIS[:1],
        "no answer at all": BREAD[:1],
        "space around the answer": answered("\n\n  Wait. \n"),
        "more bytes than characters": answered("Brød hæver 🍞🍞, 待って"),
        "the end of turn as a word": [
            {"role": "user", "content": f"What is {eos} for?"},
            {"role": "assistant", "content": f"{eos} ends a turn."},
            *PARIS,
        ],
        "cut off at the end": BREAD + answered("Mix flour, wat", finish="length"),
        "cut off before": answered("Mix flour, wat", finish="length") + PARIS,
        "a thought": answered(thought),
        "a thought before": answered(thought) + PARIS,
    }
