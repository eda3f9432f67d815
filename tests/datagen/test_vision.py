"""A verifier that takes images, in vLLM: its answers and its hidden states are those of transformers' own LLaVA."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llava import RUN, TOKEN, data_url, make_llava, picture
from small import CHATML
from specc.core.files import sha256_file
from specc.core.resolve.huggingface import config_facts
from specc.datagen.conversations import conversations
from specc.datagen.rows import read_rows
from specc.datagen.template import render
from specc.datagen.tokens import Encoder, load_tokenizer, template_of, tokens
from specc.datagen.vision import Eyes, images_of
from stages import make_job, run_here
from values import values
from vllm_runs import keep_first_unit, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.engine

LENGTH, MOST, LAYERS = 160, 16, [1, 3, 5]
PICTURES = [picture((200, 30, 30)), picture((20, 40, 200), (30, 60)), picture((10, 10, 10), (90, 20), "JPEG")]


def facts(verifier: Path) -> dict[str, Any]:
    return config_facts(lambda name: (verifier / name).read_bytes() if (verifier / name).is_file() else None)


def row(words: str, *pictures: bytes) -> dict[str, Any]:
    shown = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in pictures]
    return {"messages": [{"role": "user", "content": [*shown, {"type": "text", "text": words}]}]}


ROWS = [row("What is this?", PICTURES[0]), row("What is this?", PICTURES[1]), row("What is this?"),
        row("And these two?", PICTURES[2], PICTURES[0]), row("What is this?", PICTURES[2]),
        {"messages": [*row("What is this?", PICTURES[1])["messages"], {"role": "assistant", "content": "A disc."},
                      *row("And this?", PICTURES[0])["messages"]]}]  # fmt: skip


def write_conversations(folder: Path, rows: list[Any], per_shard: int = 4) -> Path:
    """Return an artifact of conversations with the images of rows."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    source = {"file": "rows.jsonl", "sha256": sha256_file(folder / "rows.jsonl")}
    params = {"data": {"sources": [source], "validation": {"share": 0.0, "sources": []}, "system_prompt": None,
                       "shard_rows": per_shard, "images": True}}  # fmt: skip
    made = make_job("conversations", folder, params, files={"rows.jsonl": folder / "rows.jsonl"})
    run_here(conversations, made)
    return Path(made.output)


def params(verifier: Path, dtype: str) -> dict[str, Any]:
    return values(
        **{"verifier.config": facts(verifier), "verifier.dtype": dtype, "data.sequence_length": LENGTH,
           "data.responses.max_tokens": MOST, "draft.hidden_state_layers": LAYERS}
    )  # fmt: skip


def write_tokens(folder: Path, rows: Path, verifier: Path, options: dict[str, Any]) -> Path:
    made = make_job("tokens", folder, options, inputs={"rows": rows, "verifier": verifier})
    run_here(tokens, made)
    return Path(made.output)


def test_answers_and_states_are_the_verifier_s(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors import safe_open
    from safetensors.torch import load_file
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from specc.datagen.hidden_states import read_by_training
    from specc.train.states import Format

    verifier = make_llava(tmp_path / "verifier", dtype="float32")
    source, options = write_conversations(tmp_path / "conversations", ROWS), params(verifier, "float32")
    inputs = {"conversations": source, "verifier": verifier}
    answered, _, _ = run("responses", tmp_path / "responses", options, inputs)
    model = LlavaForConditionalGeneration.from_pretrained(verifier, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(verifier)
    bytes_of = {path.name: path.read_bytes() for path in (source / "images").glob("*/*")}

    def pixels(images: list[Any]) -> dict[str, Any]:
        pictures = [Image.open(io.BytesIO(bytes_of[one["sha256"]])).convert("RGB") for one in images]
        return dict(processor.image_processor(images=pictures, return_tensors="pt")) if pictures else {}

    tokenizer, eyes = load_tokenizer(verifier), Eyes(verifier, TOKEN)
    template, said = template_of(verifier, tokenizer, options["verifier"]["config"], None), list[str]()
    rows = [one for path in sorted((answered / "shards").iterdir()) for one in read_rows(path)]
    assert ["".join(message["role"][0] for message in one["messages"]) for one in rows] == ["ua"] * 5 + ["uaua"]
    for one in rows:
        for turn, message in enumerate(one["messages"]):
            if message["role"] == "assistant":
                text = render(template, one["messages"][:turn], add_generation_prompt=True, date=options["date"])
                images = images_of(one["messages"][:turn])
                ids, _ = eyes.unfolded(tokenizer.encode(text, add_special_tokens=False).ids, images)
                room = min(MOST, LENGTH - len(ids))
                with torch.no_grad():
                    found = model.generate(torch.tensor([ids]), **pixels(images), max_new_tokens=room, do_sample=False)
                assert message["content"] == tokenizer.decode(found[0, len(ids) :].tolist()).rstrip("\ufffd")
                said.append(message["content"])
    assert len(set(said[:3])) == 3, "what is shown decides what is said"

    inputs["tokens"] = write_tokens(tmp_path / "tokens", answered, verifier, options)
    output, _, _ = run("hidden_states", tmp_path / "states", options, inputs)
    last: list[Any] = []
    model.get_decoder().norm.register_forward_pre_hook(lambda _, states: last.append(states[0][0]))
    seen = iter(rows)
    form = Format(range(len(LAYERS) + 1), model.config.text_config.hidden_size, torch.float32)
    for path in sorted((output / "shards").iterdir()):
        packed = load_file(inputs["tokens"] / "shards" / path.name)
        with safe_open(path, framework="pt") as shard:
            for number, (start, end) in enumerate(pairwise(packed["offsets"].tolist())):
                kept = read_by_training(packed["loss_mask"][start:end].bool())
                assert kept > 1
                ids = packed["input_ids"][None, start:end].long()
                with torch.no_grad():
                    images = pixels(images_of(next(seen)["messages"]))
                    states = model(ids, **images, output_hidden_states=True).hidden_states
                expected = torch.stack([*(states[layer][0] for layer in LAYERS), last.pop()], dim=1)[:kept]
                close = {"rtol": 1e-4, "atol": 1e-4 * float(expected.abs().max())}
                torch.testing.assert_close(form.read(shard, number, kept), expected, **close)
    packed = load_file(inputs["tokens"] / "shards/00000.safetensors")
    assert [end - start for start, end in packed["image_spans"].tolist()] == [RUN] * 4


@pytest.mark.full
def test_the_bits_repeat_however_the_run_went(tmp_path: Path) -> None:
    """Killed after its first shard, then asked for more rows: images seen before are not taken for known."""
    verifier = make_llava(tmp_path / "verifier")
    options = params(verifier, "bfloat16")
    answered = [{"messages": [*one["messages"], {"role": "assistant", "content": f"A disc, case {number}."}]}
                for number, one in enumerate([*ROWS, *ROWS])]  # fmt: skip
    found: list[Path] = []
    for name, rows in (("whole", answered[:8]), ("again", answered)):
        source = write_conversations(tmp_path / f"{name}-conversations", rows)
        inputs = {"conversations": source, "verifier": verifier,
                  "tokens": write_tokens(tmp_path / f"{name}-tokens", source, verifier, options)}  # fmt: skip
        if found:
            keep_first_unit(tmp_path / "whole", tmp_path / name, found[0])
        found.append(run("hidden_states", tmp_path / name, options, inputs)[0])
    whole, again = found
    for path in sorted((whole / "shards").iterdir()):
        assert path.read_bytes() == (again / "shards" / path.name).read_bytes()


def test_a_template_of_texts_alone_shows_images_too(tmp_path: Path) -> None:
    verifier = make_llava(tmp_path / "verifier", CHATML, weights=False)
    encoder = Encoder.load(verifier, params(verifier, "float32"))
    source = write_conversations(tmp_path / "conversations", ROWS[:1])
    (one,) = read_rows(source / "shards/00000.jsonl")
    one["messages"].append({"role": "assistant", "content": "A disc."})
    (item,) = encoder.encode([one])
    assert (item.ids == TOKEN).sum() == RUN  # pyright: ignore[reportAttributeAccessIssue] - an error fails the test
