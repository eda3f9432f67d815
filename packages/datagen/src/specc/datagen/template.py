"""A verifier's chat template: rendered as transformers renders it, but on a pinned day.

transformers is 4 s of import and reads the clock; the environment below is the one that its documentation promises
to templates (https://huggingface.co/docs/transformers/chat_templating_writing), sandboxed in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from specc.core.errors import Exit, SpeccError
from specc.core.images import Image
from specc.datagen.rows import MARK, Message

SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that a template knows by name."""
_THOUGHTS: Final = re.compile(r"""[.'"](reasoning_content|reasoning|thinking)\b""")
"""The names by which a template asks a message for what was thought before it was said."""

_START, _END = "\ufdd0", "\ufdd1"
"""Marks around generated text while spans are found. Unicode promises never to make these two characters."""
_TRACKED: Final = "specc_marks_generation"


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template, compiled, and the special tokens it may write.

    `marked` tells whether it says itself what the assistant generates, in `{% generation %}` blocks. `arguments` are
    those of the spec's own (`data.responses.template`), which every text that it writes is written with.
    `image_token` is the text of the token that stands for an image, empty where the verifier takes none. `parts` says
    which contents are given as lists of parts: those with images, none or all of them.
    """

    source: str
    special_tokens: Mapping[str, str]
    marked: bool
    compiled: jinja2.Template
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    image_token: str = ""
    parts: Literal["images", "none", "all"] = "images"

    def seeing(self, image_token: str) -> ChatTemplate:
        """Return the template of a verifier that takes images: tried, it says whether it reads lists of parts.

        vLLM looks for a loop over a message's content in the template's source. A list that is read shows one image
        and its text; what is written of a list that is not read is its Python form, or nothing.
        """
        asked: list[Message] = [{"role": "user", "content": f"{MARK}{_TRIED}", "images": [_TRIED_IMAGE]}]
        plain: list[Message] = [{"role": "user", "content": _TRIED}]
        listed = replace(self, image_token=image_token, parts="all")
        if not _shows(listed, asked, image_token) or _shows(listed, plain, "'type'"):
            return replace(listed, parts="none")
        return replace(listed, parts="images") if _shows(replace(listed, parts="images"), plain, "") else listed

    def content(self, message: Message) -> str | list[dict[str, str]]:
        """Return a message's content as the template is given it, which is as vLLM's server gives it.

        Of a template that takes no lists, images stand before the text, each in a line of its own.
        """
        text = message["content"]
        if "images" not in message:
            return [{"type": "text", "text": text}] if self.image_token and self.parts == "all" else text
        pieces = text.split(MARK)
        if self.parts == "none":
            return "\n".join([self.image_token] * (len(pieces) - 1) + [piece for piece in pieces if piece])
        parts = [{"type": "text", "text": pieces[0]}]
        for piece in pieces[1:]:
            parts += [{"type": "image"}, {"type": "text", "text": piece}]
        return [part for part in parts if part["type"] == "image" or part["text"]]

    def shown(self, messages: Iterable[Message]) -> list[dict[str, Any]]:
        """Return messages as the template is given them, which is as vLLM's server gives them.

        Arguments of calls are objects. What was thought has the names by which the template asks for it; if it asks
        for none and still knows `<think>`, the thought stands at the start of the content.
        """
        shown = list[dict[str, Any]]()
        for message in messages:
            item: dict[str, Any] = {"role": message["role"], "content": self.content(message)}
            if (thought := message.get("reasoning_content")) is not None:
                if names := _THOUGHTS.findall(self.source):
                    item |= dict.fromkeys(names, thought)
                elif "think>" in self.source:
                    said: Message = {**message, "content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}
                    item["content"] = self.content(said)
            if "tool_calls" in message:
                item["tool_calls"] = [
                    {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                    for call in message["tool_calls"]
                ]
            if message["role"] == "tool":
                item |= {"tool_call_id": message.get("tool_call_id", ""), "name": message.get("name", "")}
            shown.append(item)
        return shown

    @classmethod
    def parse(
        cls, source: str, special_tokens: Mapping[str, str] | None = None, arguments: Mapping[str, Any] | None = None
    ) -> ChatTemplate:
        """Compile a template; raises `SpeccError` if it is not one."""
        environment = _environment()
        try:
            compiled = environment.from_string(source)
            tokens = list(environment.lex(source))
        except jinja2.TemplateSyntaxError as error:
            raise SpeccError(
                f"the chat template cannot be compiled: {error.message}",
                where=f"chat template, line {error.lineno}",
                hint="a `chat_template.jinja` in the verifier's folder goes before its tokenizer's configuration",
                code=Exit.STAGE,
            ) from error
        marked = any(kind == "name" and text == _Generation.OPENS for _, kind, text in tokens)
        return cls(source, dict(special_tokens or {}), marked, compiled, dict(arguments or {}))

    @classmethod
    def load(cls, folder: Path, arguments: Mapping[str, Any] | None = None) -> ChatTemplate:
        """Read the template of a Hugging Face model folder; raises `SpeccError` if there is none."""
        config = _read_json(folder / "tokenizer_config.json")
        file = folder / "chat_template.jinja"
        source: Any = file.read_text() if file.is_file() else config.get("chat_template")
        if isinstance(source, list):  # an older form: several templates, each with a name
            named: list[dict[str, str]] = source
            source = next((item["template"] for item in named if item.get("name") == "default"), None)
        if not source:
            raise SpeccError(
                "the verifier has no chat template",
                where=str(folder),
                hint="use the instruct model, or put a `chat_template.jinja` beside its config",
                code=Exit.STAGE,
            )
        return cls.parse(source, _special_tokens(folder, config), arguments)


_TRIED: Final = "0specc0tried0"
_TRIED_IMAGE: Final[Image] = {"sha256": "0" * 64, "width": 1, "height": 1}


def _shows(template: ChatTemplate, messages: list[Message], what: str) -> bool:
    """Tell whether what a template writes of messages has their text, once, and `what`."""
    try:
        text = render(template, messages, add_generation_prompt=True, date="2026-01-01")
    except SpeccError:
        return False
    return text.count(_TRIED) == 1 and what in text


def render(
    template: ChatTemplate,
    messages: Iterable[Message],
    *,
    tools: str | None = None,
    add_generation_prompt: bool,
    date: str,
) -> str:
    """Return the text of `messages`; `date` (`2026-11-23`) is the day that the template may print.

    `tools` is the JSON text of those that the template may show.

    Raises `SpeccError` with the template's own words if it refuses them (a system turn, say) or fails on them.
    """
    return _render(template, messages, tools, add_generation_prompt, date, tracked=False)


def render_with_spans(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: str | None = None,
    add_generation_prompt: bool,
    date: str,
) -> tuple[str, list[tuple[int, int]]]:
    r"""Return the text of `messages` and the character spans of its outermost `{% generation %}` blocks, in order.

    Marks are written around each block and taken out again, so that blocks in macros and in captured text count:

        rendered   <|im_start|>assistant\n␂Hello!<|im_end|>␃\n
        text       <|im_start|>assistant\nHello!<|im_end|>\n        span (22, 38)

    Raises `SpeccError` as `render` does, and if the template looks at what it has marked and writes another text.
    """
    rendered = _render(template, messages, tools, add_generation_prompt, date, tracked=True)
    text, spans, depth, start = "", list[tuple[int, int]](), 0, 0
    for piece in re.split(f"([{_START}{_END}])", rendered):
        if piece == _START:
            start, depth = (len(text) if depth == 0 else start), depth + 1
        elif piece == _END:
            depth -= 1
            if depth == 0:
                spans.append((start, len(text)))
        else:
            text += piece
    if depth != 0 or text != _render(template, messages, tools, add_generation_prompt, date, tracked=False):
        raise SpeccError(
            "the template's `{% generation %}` marks change its text, or the text holds U+FDD0 or U+FDD1",
            code=Exit.STAGE,
        )
    return text, spans


def _render(
    template: ChatTemplate, messages: Iterable[Message], tools: str | None, prompt: bool, date: str, *, tracked: bool
) -> str:
    try:
        return template.compiled.render(
            {
                **template.special_tokens,
                **template.arguments,
                "messages": template.shown(messages),
                "tools": json.loads(tools) if tools else None,
                "documents": None,
                "add_generation_prompt": prompt,
                "raise_exception": _raise,
                "strftime_now": datetime.fromisoformat(date).strftime,
                _TRACKED: tracked,
            }
        )
    except jinja2.TemplateError as error:
        raise SpeccError(error.message or type(error).__name__, code=Exit.STAGE) from error
    except Exception as error:  # a template is a program: it may divide by zero or add a number to text
        raise SpeccError(f"{type(error).__name__}: {error}", code=Exit.STAGE) from error


class _Generation(ext.Extension):
    """The block `{% generation %}…{% endgeneration %}`: what stands in it is the assistant's own."""

    OPENS: Final = "generation"
    tags = {OPENS}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("mark", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    def mark(self, context: Context, caller: Macro) -> str:
        text: str = caller()
        return f"{_START}{text}{_END}" if context.get(_TRACKED) else text


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what templates are written for: transformers' filters and functions, no more."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    return environment


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return plain JSON; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the named special tokens; each is a string, or an object whose `content` is one."""
    # The older file of its own counts, as in transformers, only where the newer list of added tokens is missing.
    older = {} if "added_tokens_decoder" in config else _read_json(folder / "special_tokens_map.json")
    named = {**config, **older}
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        token = named.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise SpeccError("the verifier's file is not JSON", where=str(path), code=Exit.STAGE) from error
    return value if isinstance(value, dict) else {}
