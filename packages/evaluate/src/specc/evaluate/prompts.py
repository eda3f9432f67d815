"""Held-out prompts as tokens: found where they are, and rendered by the verifier's own template on a pinned date."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from specc.core.errors import SpeccError
from specc.core.images import from_url
from specc.core.measure.prompts import Prompt, images_of, read_prompts
from specc.core.stage import Stage


def prompts_of(stage: Stage, verifier: Path) -> tuple[list[Prompt], list[list[int]]]:
    """Return a stage's prompts, and each as token ids; files of data sets are in the artifact `prompts`.

    Raises `SpeccError` as `read_prompts` and `render` do.
    """
    params, files = stage.params, stage.job.files

    def locate(name: str) -> Path:
        return stage.file(name) if name in files else stage.input("prompts") / name

    rows, vision = (read_prompts(params["evaluate"]["prompts"], locate, params["data"]["system_prompt"]),
                    "image_token_id" in params["verifier"]["config"])  # fmt: skip
    arguments = params["data"].get("responses", {}).get("template")
    return rows, render(rows, verifier, params["date"], arguments, vision=vision)


class Asked(list[int]):
    """A prompt with images: the token ids that the verifier sees, a run of them for each image.

    `folded` are the ids with one token for each, from which vLLM makes the others, and `images` the images' bytes.
    """

    def __init__(self, tokens: Iterable[int], folded: list[int], images: tuple[bytes, ...]) -> None:
        super().__init__(tokens)
        self.folded = folded
        self.images = images


def render(
    prompts: Iterable[Prompt], verifier: Path, date: str, arguments: Mapping[str, Any] | None = None,
    *, vision: bool = False,
) -> list[list[int]]:  # fmt: skip
    """Return each prompt as token ids, the start of the assistant's turn at its end, with the tools that it lists.

    `date` (`2026-11-23`) is what the template prints for today; `arguments` are those of the spec; `vision` says
    whether the verifier takes images. Raises `SpeccError` if there is no chat template, or if it refuses a prompt.
    """
    import jinja2
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(verifier))
    if not tokenizer.chat_template:
        raise SpeccError("the verifier has no chat template", where=str(verifier),
                         hint="use a verifier with `chat_template.jinja`, such as an instruct model")  # fmt: skip
    today = datetime.fromisoformat(date)
    rendered: list[list[int]] = []
    listed = vision and _reads_parts(tokenizer)
    processor: Any = None
    for prompt in prompts:
        images = tuple(from_url(url) for url in images_of(prompt.messages))
        if images and not vision:
            raise SpeccError("the prompt has an image, and the verifier takes none", where=prompt.where,
                             hint="leave the row out, or use a verifier that takes images")  # fmt: skip
        if vision and processor is None:
            from transformers import AutoProcessor

            processor = AutoProcessor.from_pretrained(str(verifier))
        messages = [{**message, "content": _shown(message["content"], processor.image_token, listed=listed)}
                    if vision else message for message in prompt.messages]  # fmt: skip
        try:
            # A template variable hides the function of the same name that would read the clock.
            tokens = tokenizer.apply_chat_template(
                messages, tools=json.loads(prompt.tools) if prompt.tools else None, add_generation_prompt=True,
                return_dict=False, strftime_now=today.strftime, tokenize=not images, **(arguments or {}),
            )  # fmt: skip
            if images:
                folded = tokenizer(tokens, add_special_tokens=False)["input_ids"]
                seen = processor(text=[tokens], images=[opened(image) for image in images], add_special_tokens=False)
                tokens = Asked(seen["input_ids"][0], folded, images)
        except jinja2.TemplateError as error:
            raise SpeccError(f"the verifier's chat template refuses this prompt: {error}", where=prompt.where,
                             hint="change the row, or leave it out") from error  # fmt: skip
        rendered.append(tokens if images else list(tokens))
    return rendered


def opened(image: bytes) -> Any:
    """Return an image's bytes as Pillow's image, as vLLM's server loads what a client sends."""
    from vllm.multimodal.media import ImageMediaIO

    return ImageMediaIO().load_bytes(image).media


def _reads_parts(tokenizer: Any) -> bool:
    """Tell whether a chat template reads a list of parts as a content, by trying."""
    tried = "0specc0tried0"
    try:
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": tried}]}], tokenize=False
        )
    except Exception:  # noqa: BLE001 - a template that takes texts alone adds a list to one
        return False
    return tried in text and "'type'" not in text


def _shown(content: Any, image_token: str, *, listed: bool) -> Any:
    """Return a content as a template reads it: a list of parts, or a text behind a line for each image."""
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if listed:
        return [part if "text" in part else {"type": "image"} for part in parts]
    return "\n".join([image_token for part in parts if "image_url" in part] + [part["text"] for part in parts
                                                                               if "text" in part])  # fmt: skip
