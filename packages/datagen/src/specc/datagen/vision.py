r"""Images in a prompt as the verifier sees them: a run of tokens for each, as its processor makes them of its size.

In the text that a chat template writes, one token stands for an image. vLLM puts in its place what the verifier's
processor says, embeds the image into these tokens, and wants the prompt as it was before. So a row of tokens here has
all of them, with the place of each run, and `folded` gives back the one token.

    template   <|im_start|> user \n <image> What is it ?        `<image>` is the token `image_token_id`
    row        <|im_start|> user \n <image> <image> <image> <image> What is it ?
    span                            └─────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specc.core.errors import Exit, SpeccError
from specc.core.images import Image
from specc.datagen.images import image_file
from specc.datagen.media import counted
from specc.datagen.rows import Message


@dataclass(frozen=True, slots=True)
class Placed:
    """An image in a row: the sha256 of its bytes, and the tokens from `start` to before `end` that stand for it."""

    sha256: str
    start: int
    end: int


class Eyes:
    """A verifier's processor of images, asked how many tokens it makes of each size; it is loaded for the first one."""

    def __init__(self, folder: Path, token: int) -> None:
        """Take a verifier's folder, and the token that stands for an image in its prompts."""
        self.token = token
        self._folder = folder
        self._processor: Any = None
        self._runs: dict[tuple[int, int], list[int]] = {}

    def unfolded(self, ids: Sequence[int], images: Sequence[Image]) -> tuple[list[int], list[Placed]]:
        """Return a row's tokens with the runs of its images, and where these are.

        Raises `ValueError` if there are not as many places as images.
        """
        places = sum(token == self.token for token in ids)
        if places != len(images):
            raise ValueError(f"{counted(places, 'place')} for {counted(len(images), 'image')}")
        row, placed, waiting = list[int](), list[Placed](), iter(images)
        for token in ids:
            if token != self.token:
                row.append(token)
                continue
            image, start = next(waiting), len(row)
            row += self.run(image["width"], image["height"])
            placed.append(Placed(image["sha256"], start, len(row)))
        return row, placed

    def run(self, width: int, height: int) -> list[int]:
        """Return the tokens that stand for an image of so many pixels."""
        if (width, height) not in self._runs:
            self._runs[width, height] = self._ask(width, height)
        return self._runs[width, height]

    def _ask(self, width: int, height: int) -> list[int]:
        from PIL import Image as Pillow

        if self._processor is None:
            self._processor = _processor(self._folder)
        text: str = self._processor.tokenizer.convert_ids_to_tokens(self.token)
        blank = Pillow.new("RGB", (width, height))
        try:
            # What it makes of a size is the same for every image of that size: vLLM asks by the size alone, too.
            found = self._processor(text=[text], images=[blank], add_special_tokens=False, return_tensors=None)
        except Exception as error:
            raise SpeccError(f"the verifier's processor refuses an image of {width} x {height} pixels:"
                             f" {type(error).__name__}: {str(error)[:200]}", code=Exit.STAGE) from error  # fmt: skip
        return [int(token) for token in found["input_ids"][0]]


def folded(row: Sequence[int], placed: Iterable[Placed], token: int) -> list[int]:
    """Return a row's tokens with one, `token`, for each image, as vLLM takes them."""
    ids, at = list[int](), 0
    for image in placed:
        ids += [*row[at : image.start], token]
        at = image.end
    return [*ids, *row[at:]]


def _processor(folder: Path) -> Any:
    """Return a verifier's processor; raises `SpeccError` if there is none that works here."""
    try:
        from transformers import AutoProcessor

        processor: Any = AutoProcessor.from_pretrained(str(folder))
        if not hasattr(processor, "image_processor"):
            raise ValueError("it has no processor of images")  # noqa: TRY301
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise SpeccError(
            f"the verifier's processor of images cannot be loaded: {type(error).__name__}: {first[:200]}",
            hint="its folder needs a `processor_config.json`; where it asks for torchvision, one that fits torch",
            code=Exit.STAGE,
        ) from error
    return processor


def eyes_of(verifier: Path, config: Mapping[str, Any]) -> Eyes | None:
    """Return the processor of a verifier that takes images, None for one that takes none."""
    return Eyes(verifier, config["image_token_id"]) if "image_token_id" in config else None


def images_of(messages: Iterable[Message]) -> list[Image]:
    """Return the images of messages, in order."""
    return [image for message in messages for image in message.get("images", ())]


class Shown:
    """Prompts for vLLM with the images that an artifact of conversations holds."""

    def __init__(self, conversations: Path) -> None:
        """Take the artifact's folder."""
        self._folder = conversations
        self._asked = 0

    def prompt(self, ids: Sequence[int], images: Sequence[str]) -> dict[str, Any]:
        """Return vLLM's prompt of token ids with one token for each of `images`, by their sha256.

        An image has a name of its own each time it is shown: what vLLM remembers of an earlier one was computed in
        another batch, and its bits could be other ones.
        """
        from vllm.multimodal.media import ImageMediaIO

        load = ImageMediaIO().load_bytes  # as vLLM's server loads what a client sends
        pictures = [load(image_file(self._folder, image).read_bytes()).media for image in images]
        names = [f"{self._asked + number}" for number in range(len(images))]
        self._asked += len(images)
        return {"prompt_token_ids": list(ids), "multi_modal_data": {"image": pictures},
                "multi_modal_uuids": {"image": names}}  # fmt: skip
