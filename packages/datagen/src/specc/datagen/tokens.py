"""The stage `tokens`: conversations rendered by the verifier's chat template, as token ids and loss masks.

Training data must be what serving shows the verifier. vLLM renders a chat to text with the model's template and
then encodes that text without adding special tokens (the template has written its own), and so does this stage.
A special token's name inside a user's text, a literal `<|im_end|>` say, becomes that token in vLLM and in
transformers' `apply_chat_template`; it does here too, and the mask, being made of characters, is not misled by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Encoding, Tokenizer, processors

from specc.core.errors import Exit, SpeccError
from specc.core.files import pretty, write_atomic
from specc.core.images import Image
from specc.core.stage import Stage, Tell, Unit
from specc.datagen.masks import REASONS, LeftOutError, Marked, Masker, cut_at, token_mask
from specc.datagen.rows import Message, Row, Said, ShardInfo, read_rows, read_shards, shard_info, shard_name
from specc.datagen.template import ChatTemplate
from specc.datagen.vision import Eyes, Placed, eyes_of, images_of

COUNTS: Final = ("cut", "context_turns", *REASONS)
"""What the tensor `counts` of a shard counts, so that a shard taken over from another build still knows: all of it with
`data.filters.min_trained_share` (`[8]`), and else all but the last (`[7]`)."""
FILTER: Final = "few_trained"
"""The reason that the spec gives: nothing is wrong with such a row."""
SPLITS: Final = {"train": 0, "validation": 1}
_TOP: Final = 2**31 - 1
"""The largest token id that a shard holds; no vocabulary is as large."""
MARKS: Final = "look at the template's `{% generation %}` marks: they belong around the assistant's content"
HINTS: Final[Mapping[str, str]] = {
    "no_answer": "the rows have no answers: set `data.responses.from` to `verifier`, or give data with answers",
    "template_refused": "the template raises for these rows, or does not show what is in them: without"
    " `data.system_prompt`, perhaps, or with a template that knows tools?",
    "unstable_prefix": "the template writes something else before an answer than its generation prompt says:"
    " give the verifier a template with `{% generation %}` marks, or, if it thinks first, let it answer itself",
    "too_long": "every prompt is longer than `data.sequence_length`: give a larger one",
    "few_trained": "a smaller share of every row is trained than `data.filters.min_trained_share` asks for: lower it",
}
"""What to do when no row is left, by the most frequent reason."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids and loss mask `[tokens]`, and the token behind each trained span `[spans]`.

    `text` is what the tokens are of, and `offsets` `[tokens, 2]` their characters in it; both are empty where the row
    brought its tokens. `images` are those among the tokens, in order.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    behind: NDArray[np.int64]
    context_turns: int = 0
    text: str = ""
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    images: tuple[Placed, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoder:
    """A verifier's tokenizer as vLLM uses it for chats, and the chat template's masks.

    Of a row at least the share `least` of its tokens is trained, else it is left out; None is no filter.
    """

    tokenizer: Tokenizer
    masker: Masker
    sequence_length: int
    vocabulary: int
    eyes: Eyes | None = None
    least: float | None = None

    @classmethod
    def load(cls, folder: Path, params: Mapping[str, Any]) -> Encoder:
        """Read tokenizer and template of a verifier's folder; `params` are the stage's."""
        tokenizer, config = load_tokenizer(folder), params["verifier"]["config"]
        ends = [tokenizer.id_to_token(token) for token in config["eos_token_ids"]]
        names = [*special_tokens(tokenizer).values(), *(name for name in ends if name)]
        template = template_of(folder, tokenizer, config, params["data"].get("responses", {}).get("template"))
        masker = Masker(template, sorted(set(names)), params["date"])
        least = params["data"].get("filters", {}).get("min_trained_share")
        return cls(tokenizer, masker, params["data"]["sequence_length"], config["vocab_size"],
                   eyes_of(folder, config), least)  # fmt: skip

    @property
    def counts(self) -> tuple[str, ...]:
        """What a shard's `counts` count."""
        return COUNTS[:-1] if self.least is None else COUNTS

    def encode(self, rows: Sequence[Said]) -> list[Encoded | LeftOutError]:
        """Return the rows as tokens, whole, or why they cannot be trained on."""
        self.masker.tails.clear()  # a shard's bytes must not depend on which shards this process made before it
        marked = list[Marked | Encoded | LeftOutError]()
        for row in rows:
            try:
                marked.append(self._given(row) if "input_ids" in row else
                              self.masker.mark(row["messages"], row.get("tools")))  # fmt: skip
            except LeftOutError as error:
                marked.append(error)
        texts = [item.text for item in marked if isinstance(item, Marked)]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [self._encoded(item, next(encodings), answered(row["messages"])) if isinstance(item, Marked) else item
                for item, row in zip(marked, rows, strict=True)]  # fmt: skip

    def encode_text(self, marked: Marked, messages: Sequence[Message]) -> Encoded | LeftOutError:
        """Return a rendered conversation as tokens, or why it has not its images in it."""
        return self._encoded(marked, self.tokenizer.encode(marked.text, add_special_tokens=False), messages)

    def _given(self, row: Said) -> Encoded:
        found = given(row)
        if self.eyes is not None and (found.ids == self.eyes.token).any():
            raise LeftOutError("template_refused", "it gives its tokens, and one of them stands for an image")
        return found

    def _encoded(self, marked: Marked, encoding: Encoding, messages: Sequence[Message]) -> Encoded | LeftOutError:
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        mask, behind = token_mask(offsets, marked.spans)
        row = Encoded(np.array(encoding.ids, np.int32), mask, behind, marked.context_turns, marked.text, offsets)
        if self.eyes is None:
            return row
        try:
            return with_images(row, self.eyes, images_of(messages))
        except ValueError as error:
            return LeftOutError("template_refused", f"its text has {error}")

    def kept(self, found: Encoded) -> int:
        """Return how many of a row's tokens to keep; raises `LeftOutError` if it is left out."""
        length = cut_at(found.mask, found.behind, self.sequence_length)
        trained = int(found.mask[:length].sum())
        if self.least is not None and trained < self.least * length:
            raise LeftOutError("few_trained", f"{trained} of {length} tokens are trained")
        return length

    def shard(self, rows: list[Row]) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Return the tensors of a shard, and where and why rows were left out."""
        counts, refused, images = Counter[str](), list[str](), list[Placed]()
        ids, masks, kept = list[NDArray[np.int32]](), list[NDArray[np.uint8]](), list[Row]()
        for row, found in zip(rows, self.encode(rows), strict=True):
            try:
                if isinstance(found, LeftOutError):
                    raise found
                length = self.kept(found)
            except LeftOutError as error:
                counts[error.reason] += 1
                if error.reason != FILTER:
                    refused.append(f"{row['source']}:{row['line']}: {error.detail}")
                continue
            before = sum(map(len, ids))
            images += [Placed(image.sha256, before + image.start, before + image.end) for image in found.images
                       if image.end <= length]  # fmt: skip
            counts["cut"] += length < len(found.mask)
            counts["context_turns"] += found.context_turns
            ids.append(found.ids[:length])
            masks.append(found.mask[:length])
            kept.append(row)
        tensors: dict[str, NDArray[Any]] = {
            "input_ids": np.concatenate([np.zeros(0, np.int32), *ids]),  # [tokens]
            "loss_mask": np.concatenate([np.zeros(0, np.uint8), *masks]),  # [tokens]
            "offsets": np.cumsum([0, *(len(item) for item in ids)], dtype=np.int64),  # [rows + 1]
            "row": np.array([row["row"] for row in kept], np.int64),  # [rows]
            "split": np.array([SPLITS[row["split"]] for row in kept], np.uint8),  # [rows]
            "counts": np.array([counts[name] for name in self.counts], np.int64),  # [counts]
        }
        if images:
            digests = b"".join(bytes.fromhex(image.sha256) for image in images)
            tensors["image_sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)  # [images, 32]
            tensors["image_spans"] = np.array([(image.start, image.end) for image in images], np.int64)  # [images, 2]
        if (highest := int(tensors["input_ids"].max(initial=0))) >= self.vocabulary:
            raise SpeccError(
                f"the rows have token {highest}, and the verifier has {self.vocabulary} embeddings",
                hint="the tokenizer, or rows that bring their own tokens, and the weights are of different models",
                code=Exit.STAGE,
            )
        return tensors, refused


def tokens(stage: Stage) -> None:
    """Write a shard of tokens and loss masks for each shard of rows; the index sums them up.

    Raises `SpeccError` if nothing, or everything, would be trained: both mean that template and data do not fit.
    """
    rows, verifier = stage.input("rows"), stage.job.inputs["verifier"]
    encoder = Encoder.load(Path(verifier.path), stage.params)
    material = {
        "sequence_length": stage.params["data"]["sequence_length"],
        "config": stage.params["verifier"]["config"],
        "date": stage.params["date"],
        "verifier": verifier.digest,
        **stage.params["data"].get("responses", {}),
        **stage.params["data"].get("filters", {}),
    }
    sources, refused = read_shards(rows), list[str]()

    def unit(number: int, source: ShardInfo) -> Unit:
        def write(path: Path, _: Tell) -> None:
            tensors, reasons = encoder.shard(list(read_rows(rows / source.file)))
            refused.extend(reasons[:1])
            save_file(tensors, path)

        return Unit(name=shard_name(number, ".safetensors"), material={**material, "rows": source.sha256},
                    amount=source.rows, write=write)  # fmt: skip

    units = [unit(number, source) for number, source in enumerate(sources)]
    stage.units(units, "rows")
    if stage.worker:
        return
    total, shards = sum(source.rows for source in sources), list[dict[str, Any]]()
    counts = np.zeros(len(encoder.counts), np.int64)
    for one in units:
        tensors = load_file(stage.output / one.name)
        counts += tensors["counts"]
        shards.append(
            asdict(shard_info(stage.output, one.name, len(tensors["row"])))
            | {"tokens": len(tensors["input_ids"]), "trained_tokens": int(tensors["loss_mask"].sum())}
        )
    sums = {key: sum(shard[key] for shard in shards) for key in ("rows", "tokens", "trained_tokens")}
    counted = {name: int(count) for name, count in zip(encoder.counts, counts, strict=True)}
    left_out = {reason: counted[reason] for reason in REASONS if counted.get(reason)}
    check_masks(sums["tokens"], sums["trained_tokens"], left_out, encoder.masker.template.source)
    if odd := {reason: count for reason, count in left_out.items() if reason != FILTER}:
        example = f"; the first: {refused[0]}" if refused else ""
        stage.warn(f"{sum(odd.values())} of {total} rows were left out ({listed(odd)}){example}")
    if filtered := left_out.get(FILTER):
        stage.note(f"{filtered} of {total} rows have too small a share of trained tokens and were left out")
    index = {
        **sums,
        "cut": counted["cut"],
        "context_turns": counted["context_turns"],
        "left_out": left_out,
        "shards": shards,
    }
    write_atomic(stage.output / "index.json", pretty(index))


def answered(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages up to the last answer, which are what is rendered."""
    return messages[: max((i for i, message in enumerate(messages, 1) if message["role"] == "assistant"), default=0)]


def with_images(row: Encoded, eyes: Eyes, images: Sequence[Image]) -> Encoded:
    """Return a row with the run of tokens of each image in place of the one that the template wrote.

    None of them is trained, also where a template says that the assistant wrote it. Raises `ValueError` if there are
    not as many places as images.
    """
    ids, placed = eyes.unfolded(row.ids.tolist(), images)
    if not placed:
        return row
    single = row.ids == eyes.token
    counts = np.ones(len(row.ids), np.int64)  # [tokens]: how many each becomes
    counts[single] = [image.end - image.start for image in placed]
    moved = np.concatenate([[0], np.cumsum(counts)])  # [tokens + 1]: where each begins
    mask = np.repeat(np.where(single, np.uint8(0), row.mask), counts)
    return replace(row, ids=np.array(ids, np.int32), mask=mask, behind=moved[row.behind],
                   offsets=np.repeat(row.offsets, counts, 0), images=tuple(placed))  # fmt: skip


def template_of(
    folder: Path, tokenizer: Tokenizer, config: Mapping[str, Any], arguments: Mapping[str, Any] | None
) -> ChatTemplate:
    """Return a verifier's chat template, which knows how it is shown images if the verifier takes any."""
    template = ChatTemplate.load(folder, arguments)
    if "image_token_id" not in config:
        return template
    token = tokenizer.id_to_token(config["image_token_id"])
    if token is None:
        raise SpeccError(f"the tokenizer has no token {config['image_token_id']}, which stands for an image",
                         hint="the tokenizer and the weights are of different models", code=Exit.STAGE)  # fmt: skip
    return template.seeing(token)


def given(row: Said) -> Encoded:
    """Return the tokens that a row brings, with its own mask; raises `LeftOutError` if that trains nothing."""
    mask = np.array(row.get("loss_mask", ()), np.uint8)
    if not mask.any():
        raise LeftOutError("empty_mask")
    behind = np.flatnonzero(np.diff(mask, append=0) == np.uint8(255)) + 1  # 1 to 0, in unsigned bytes
    return Encoded(np.array(row.get("input_ids", ()), np.int64).clip(max=_TOP).astype(np.int32), mask, behind)


def check_masks(tokens: int, trained: int, left_out: Mapping[str, int], template: str) -> None:
    """Raise `SpeccError` if the loss masks of all rows together are empty or all ones."""
    where = f"chat template `{' '.join(template[:80].split())} …`"
    if trained == 0:
        most = max(left_out, key=lambda reason: left_out[reason], default="")
        raise SpeccError(
            f"no token is left to train on (rows left out: {listed(left_out) or 'none'})",
            where=where,
            hint=HINTS.get(most, MARKS),
            code=Exit.STAGE,
        )
    if trained == tokens:
        raise SpeccError("every token would be trained, the prompts' too", where=where, hint=MARKS, code=Exit.STAGE)


def listed(left_out: Mapping[str, int]) -> str:
    """Return `too_long 3, no_answer 1` for people."""
    return ", ".join(f"`{reason}` {count}" for reason, count in left_out.items())


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a verifier's folder for whole texts: nothing is added, cut or padded.

    Its offsets cover all characters of a token. Byte-level tokenizers trim a leading space from them by
    default, and a token ` Hi` that takes its space from the prompt would look like the answer's own.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower one
        raise SpeccError(
            "the verifier has no `tokenizer.json` that can be read",
            where=str(path),
            hint="`AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` writes one",
            code=Exit.STAGE,
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the special tokens that were added to a tokenizer, by id."""
    added = tokenizer.get_added_tokens_decoder()
    return {token: added[token].content for token in sorted(added) if added[token].special}
