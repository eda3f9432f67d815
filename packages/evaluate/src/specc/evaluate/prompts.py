"""Held-out prompts as tokens: found where they are, and rendered by the verifier's own template on a pinned date."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from specc.core.errors import SpeccError
from specc.core.measure.prompts import Prompt, read_prompts
from specc.core.stage import Stage


def prompts_of(stage: Stage, verifier: Path) -> tuple[list[Prompt], list[list[int]]]:
    """Return a stage's prompts, and each as token ids; files of data sets are in the artifact `prompts`.

    Raises `SpeccError` as `read_prompts` and `render` do.
    """
    params, files = stage.params, stage.job.files

    def locate(name: str) -> Path:
        return stage.file(name) if name in files else stage.input("prompts") / name

    rows = read_prompts(params["evaluate"]["prompts"], locate, params["data"]["system_prompt"])
    return rows, render(rows, verifier, params["date"], params["data"].get("responses", {}).get("template"))


def render(
    prompts: Iterable[Prompt], verifier: Path, date: str, arguments: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Return each prompt as token ids, the start of the assistant's turn at its end, with the tools that it lists.

    `date` (`2026-11-23`) is what the template prints for today; `arguments` are those of the spec. Raises `SpeccError`
    if there is no chat template, or if it refuses a prompt.
    """
    import jinja2
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(verifier))
    if not tokenizer.chat_template:
        raise SpeccError("the verifier has no chat template", where=str(verifier),
                         hint="use a verifier with `chat_template.jinja`, such as an instruct model")  # fmt: skip
    today = datetime.fromisoformat(date)
    rendered: list[list[int]] = []
    for prompt in prompts:
        try:
            # A template variable hides the function of the same name that would read the clock.
            tokens = tokenizer.apply_chat_template(
                list(prompt.messages), tools=json.loads(prompt.tools) if prompt.tools else None,
                add_generation_prompt=True, return_dict=False, strftime_now=today.strftime, **(arguments or {}),
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise SpeccError(f"the verifier's chat template refuses this prompt: {error}", where=prompt.where,
                             hint="change the row, or leave it out") from error  # fmt: skip
        rendered.append(list(tokens))
    return rendered
