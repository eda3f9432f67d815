"""Images in rows: every way to say one, what is refused, what an artifact holds of them, and where they stand."""

from __future__ import annotations

import io
import json
import struct
import zlib
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from safetensors.numpy import load_file

from llava import IMAGES, RUN, TOKEN, data_url, make_llava, picture
from small import CHATML, make_tokenizer
from specc.core import images
from specc.core.contracts import Note
from specc.core.errors import SpeccError
from specc.core.files import sha256_file
from specc.core.images import Image, ImageError, look
from specc.datagen.conversations import conversations, identified
from specc.datagen.images import image_file
from specc.datagen.rows import MARK, Row, read_rows, read_shards
from specc.datagen.shapes import read_row
from specc.datagen.template import ChatTemplate, render
from specc.datagen.tokens import tokens
from specc.datagen.tools import ShapeError
from specc.datagen.vision import Eyes, Placed, folded
from stages import make_job, run_here

DATE = "2026-11-23"
RED, BLUE = picture(), picture((20, 40, 200), (30, 60))
ASKED = "What is this?"
PLAIN = {"messages": [{"role": "user", "content": "Hi"}]}


def see(value: object) -> Image:
    """Take anything for an image that is called by it."""
    return {"sha256": str(value), "width": 1, "height": 1}


def said(row: object) -> tuple[str, list[str]]:
    """Return the first message of a row, with its images."""
    (message, *_) = read_row(row, see)["messages"]
    return message["content"], [image["sha256"] for image in message.get("images", [])]


def parts(*items: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(items)}]}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (parts({"type": "image_url", "image_url": {"url": "a"}}, text("b")), (f"{MARK}b", ["a"])),
        (parts(text("b"), {"type": "image_url", "image_url": "a"}), (f"b{MARK}", ["a"])),
        (parts(text("b"), text("c"), {"type": "image", "image": "a"}, text("d")), (f"b\nc{MARK}d", ["a"])),
        (parts({"type": "image", "path": "a", "text": None}, {"type": "image", "url": "c"}, "d"),
         (f"{MARK}{MARK}d", ["a", "c"])),
        ({**parts({"type": "image"}, text("b")), "images": ["a"]}, (f"{MARK}b", ["a"])),
        ({"conversations": [{"from": "human", "value": "<image>\nb"}], "image": "a"}, (f"{MARK}b", ["a"])),
        ({"conversations": [{"from": "human", "value": "b\n<image>"}], "images": ["a"]}, (f"b{MARK}", ["a"])),
        ({"prompt": "b", "images": ["a", "c"]}, (f"{MARK}{MARK}b", ["a", "c"])),
        ({"instruction": "<image> b <image>", "output": "c", "images": ["a", "d"]}, (f"{MARK} b {MARK}", ["a", "d"])),
        ({"prompt": "what is <image>?"}, ("what is <image>?", [])),
        ({"prompt": f"a literal {MARK}"}, (f"a literal {MARK}", [])),
        ({"prompt": "b", "images": [], "image": None}, ("b", [])),
    ],
)  # fmt: skip
def test_every_way_to_say_an_image_is_read_into_one(row: object, expected: tuple[str, list[str]]) -> None:
    assert said(row) == expected


def test_images_go_to_the_turns_that_show_them() -> None:
    row = {"images": ["a", "b", "c"], "conversations": [
        {"from": "human", "value": "<image>\none"}, {"from": "gpt", "value": "two"},
        {"from": "human", "value": "<image><image>three"}]}  # fmt: skip
    found = [[image["sha256"] for image in message.get("images", [])] for message in read_row(row, see)["messages"]]
    assert found == [["a"], [], ["b", "c"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "<image> a", "images": ["a", "b"]}, "it has 2 images in a column of its own, and 1 place for them"),
        (parts({"type": "image"}, text("b")), "it has no images in a column of its own, and 1 place for them"),
        ({**parts({"type": "image", "image": "a"}, text("b")), "image": "c"},
         "it has 1 image in a column of its own, and no places for them"),
        ({"prompt": f"b{MARK}", "image": "a"}, "its text has the character U+FFFC, which stands for an image here"),
        (parts({"type": "image", "image": "a"}, text(MARK)),
         "its text has the character U+FFFC, which stands for an image here"),
        ({"messages": [{"role": "user", "content": "a"},
                       {"role": "assistant", "content": [{"type": "image", "image": "a"}]}]},
         "turn 2 is of the role `assistant` and has an image: only a user's may"),
        ({"input_ids": [1, 2], "loss_mask": [0, 1], "images": ["a"]},
         "it gives its tokens, and its images have no place among them"),
        ({"prompt": "a", "videos": ["b"]}, "`videos` is not in this release"),
    ],
)  # fmt: skip
def test_rows_whose_images_have_no_place_are_refused(row: object, message: str) -> None:
    with pytest.raises(ShapeError) as raised:
        read_row(row, see)
    assert str(raised.value) == message


@pytest.mark.parametrize("row", [parts({"type": "image", "image": "a"}), {"prompt": "a", "image": "b"}])
def test_a_verifier_that_takes_no_images_is_given_no_row_that_has_one(row: object) -> None:
    with pytest.raises(ShapeError, match="it has an image, and the verifier takes none"):
        read_row(row)


def bomb(side: int) -> bytes:
    """Return a PNG of a few kilobytes that says it has `side` squared pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated() -> bytes:
    frames, data = [Pillow.new("RGB", (4, 4), (value, 0, 0)) for value in (0, 255)], io.BytesIO()
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:])
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no bytes"),
        (b"GIF89a", "is no PNG, JPEG or WebP that can be read"),
        (RED[:-30], "is damaged"),
        (RED.replace(b"IDAT", b"IDAX"), "is no PNG, JPEG or WebP that can be read"),
        (bomb(1 << 13 | 1), "has 8193 x 8193 pixels, and 64 Mi are allowed"),
        (bomb(1 << 15), "has more than 64 Mi pixels"),
        (picture(size=(1, 201)), "has 1 x 201 pixels, and its sides may be 200 to 1"),
        (animated(), "is animated"),
        (picture(form="GIF"), "is no PNG, JPEG or WebP that can be read"),
    ],
)  # fmt: skip
def test_what_is_no_image_that_is_taken(data: bytes, message: str) -> None:
    with pytest.raises(ImageError) as raised:
        look(data)
    assert str(raised.value) == message


def test_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", len(RED) - 1)
    with pytest.raises(ImageError, match=f"has {len(RED)} bytes"):
        look(RED)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_named_by_its_bytes_and_has_its_size(form: str) -> None:
    data = picture(size=(33, 21), form=form)
    assert look(data) == {"sha256": sha256(data).hexdigest(), "width": 33, "height": 21}


def test_an_image_is_as_large_as_it_is_shown() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    found = look(picture(size=(33, 21), form="JPEG", exif=exif))
    assert (found["width"], found["height"]) == (21, 33)


# The stage `conversations`


def build(folder: Path, source: Path, item: dict[str, Any] | None = None, **data: Any) -> tuple[list[Row], Path]:
    """Return the rows of an artifact of conversations, and its folder."""
    item = {"file": source.name, "sha256": sha256_file(source), **(item or {})}
    params = {"data": {"sources": [item], "validation": {"share": 0.0, "sources": []}, "system_prompt": None,
                       "shard_rows": 8, "images": True, **data}}  # fmt: skip
    files = {source.name: source, **{name: folder / name for name in item.get("image_files", {})}}
    made = make_job("conversations", folder, params, files=files)
    run_here(conversations, made)
    output = Path(made.output)
    return [row for shard in read_shards(output) for row in read_rows(output / shard.file)], output


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(image: Any, words: str = ASKED, **more: Any) -> dict[str, Any]:
    return {**parts({"type": "image_url", "image_url": {"url": image}}, text(words)), **more}


def test_images_enter_the_artifact_once_each_by_their_sha256(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ask(data_url(RED)), ask(data_url(RED), "Once more?"), ask(data_url(BLUE)),
                   {"prompt": "No image at all"})  # fmt: skip
    rows, output = build(tmp_path, source)
    kept = {path.name: path.read_bytes() for path in (output / "images").glob("*/*")}
    assert kept == {sha256(data).hexdigest(): data for data in (RED, BLUE)}
    assert json.loads((output / "index.json").read_text())["images"] == {"files": 2, "bytes": len(RED) + len(BLUE)}
    assert rows[0]["messages"] == [{
        "role": "user", "content": f"{MARK}{ASKED}",
        "images": [{"sha256": sha256(RED).hexdigest(), "width": 40, "height": 30}],
    }]  # fmt: skip
    assert rows[3]["messages"] == [{"role": "user", "content": "No image at all"}]
    assert image_file(output, rows[2]["messages"][0]["images"][0]["sha256"]).read_bytes() == BLUE


def test_a_row_s_identity_has_its_images_and_a_duplicate_has_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ask(data_url(RED)), ask(data_url(BLUE)),
                   {"prompt": f"<image>\n{ASKED}", "image": data_url(RED)})  # fmt: skip
    rows, _ = build(tmp_path, source)
    assert [row["line"] for row in rows] == [1, 2]  # the third says and shows what the first does
    plain, _ = identified({"prompt": ASKED})
    assert len({plain, *(row["id"] for row in rows)}) == 3


def test_images_in_files_are_those_that_the_lock_names(tmp_path: Path) -> None:
    (tmp_path / "pictures/more").mkdir(parents=True)
    (tmp_path / "pictures/red.png").write_bytes(RED)
    (tmp_path / "pictures/more/blue.png").write_bytes(BLUE)
    names = ("pictures/red.png", "pictures/more/blue.png")
    item = {"images": "pictures", "image_files": {name: sha256_file(tmp_path / name) for name in names}}
    llava = {"conversations": [{"from": "human", "value": "<image>\nWhat?"}], "image": "red.png"}
    source = write(tmp_path / "a.jsonl", llava, ask("more/blue.png"), ask("./more/../more/blue.png", "Again?"))
    rows, output = build(tmp_path, source, item)
    found = [row["messages"][0]["images"][0]["sha256"] for row in rows]
    assert [image_file(output, one).read_bytes() for one in found] == [RED, BLUE, BLUE]
    (tmp_path / "pictures/red.png").write_bytes(BLUE)
    with pytest.raises(SpeccError, match=r"`pictures/red\.png` is not the image that the lock names"):
        build(tmp_path, source, item)


def test_images_of_tables_are_bytes_in_them(tmp_path: Path) -> None:
    struct_rows = [{"images": [{"bytes": RED, "path": "red.png"}], "prompt": "<image>What?"},
                   {"images": [{"bytes": BLUE, "path": None}], "prompt": "<image>What?"}]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(struct_rows), tmp_path / "a.parquet")
    rows, _ = build(tmp_path, tmp_path / "a.parquet")
    assert [row["messages"][0]["images"][0]["sha256"] for row in rows] == [
        sha256(one).hexdigest() for one in (RED, BLUE)
    ]
    pq.write_table(pa.table({"image": [RED], "prompt": ["What?"], "bytes": [b"other"]}), tmp_path / "b.parquet")
    rows, _ = build(tmp_path, tmp_path / "b.parquet")
    assert rows[0]["messages"][0]["content"] == f"{MARK}What?"
    pq.write_table(pa.table({"pic": [RED], "ask": ["What?"]}), tmp_path / "c.parquet")
    rows, _ = build(tmp_path, tmp_path / "c.parquet", {"columns": {"prompt": "ask", "images": "pic"}})
    assert rows[0]["messages"][0]["images"][0]["width"] == 40


def test_bad_images_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/red.png").write_bytes(RED)
    item = {"images": "pictures", "image_files": {"pictures/red.png": sha256_file(tmp_path / "pictures/red.png")}}
    source = write(
        tmp_path / "a.jsonl", ask("https://example.org/x.png"), ask("../a.jsonl"), ask("absent.png"),
        ask("/etc/hostname"), ask("data:image/png,abc"), ask("data:image/png;base64,%%%"), ask(data_url(b"nothing")),
        ask(data_url(RED[:-40])), ask(3), ask(None), ask("red.png"), ask("file:///etc/passwd"),
    )  # fmt: skip
    rows, output = build(tmp_path, source, item, bad_rows=0.95)
    assert [row["line"] for row in rows] == [11]
    bad = [json.loads(line) for line in (output / "bad_rows.jsonl").read_text().splitlines()]
    assert [f"{one['line']} {one['reason']}" for one in bad] == [
        "1 an image is at an address, and nothing is fetched for a row",
        "2 there is no image `../a.jsonl` in `pictures`",
        "3 there is no image `absent.png` in `pictures`",
        "4 there is no image `/etc/hostname` in `pictures`",
        "5 an image is a `data:` URL that is not base64",
        "6 an image is a `data:` URL that is not base64",
        "7 an image is no PNG, JPEG or WebP that can be read",
        "8 an image is damaged",
        "9 an image is a number, and no path, no `data:` URL and no bytes",
        "10 it has no images in a column of its own, and 1 place for them",
        "12 there is no image `file:///etc/passwd` in `pictures`",
    ]
    assert len(list((output / "images").glob("*/*"))) == 1
    with pytest.raises(SpeccError, match="11 rows of 12 cannot be used"):
        build(tmp_path, source, item)
    with pytest.raises(SpeccError, match=r"its image is the file `red\.png`, and its source has no folder `images`"):
        build(tmp_path, write(tmp_path / "b.jsonl", ask("red.png")))


def test_questions_about_other_images_are_no_near_duplicates(tmp_path: Path) -> None:
    words = "Describe what can be seen in this picture, with all that stands in its background. "
    source = write(tmp_path / "a.jsonl", ask(data_url(RED), words * 3), ask(data_url(BLUE), words * 3),
                   ask(data_url(RED), words * 3 + "Now."))  # fmt: skip
    rows, output = build(tmp_path, source, filters={"near_duplicates": 0.8})
    assert [row["line"] for row in rows] == [1, 2]
    assert len(list((output / "images").glob("*/*"))) == 2


# Templates


def shown(source: str, content: str, *pictures: bytes) -> str:
    template = ChatTemplate.parse(source).seeing("<image>")
    message: Any = {"role": "user", "content": content}
    if pictures:
        message["images"] = [look(one) for one in pictures]
    return render(template, [message], add_generation_prompt=False, date=DATE)


LISTS_ONLY = (
    "{% for message in messages %}{{ message.role | upper }}: {% for part in message.content | selectattr('type',"
    " 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% for part in message.content | selectattr('type', 'equalto',"
    " 'text') %}{{ part.text + ' ' }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "images", "plain"),
    [
        (IMAGES, "<|im_start|>user\nFirst <image>\n then?<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n"),
        (LISTS_ONLY, "USER: <image>\nFirst   then? ", "USER: Hi "),
        (CHATML, "<|im_start|>user\n<image>\nFirst \n then?<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n"),
    ],
)
def test_a_template_is_shown_images_as_it_reads_them(source: str, images: str, plain: str) -> None:
    assert shown(source, f"First {MARK} then?", RED) == images
    assert shown(source, "Hi") == plain


# The stage `tokens`


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier's folder without its weights."""
    return make_llava(tmp_path_factory.mktemp("llava") / "llava", weights=False)


def answer(row: dict[str, Any], words: str = "Paris is in France.") -> dict[str, Any]:
    return {**row, "messages": [*row["messages"], {"role": "assistant", "content": words}]}


def encode(folder: Path, verifier: Path, *rows: Any, length: int = 256) -> tuple[dict[str, Any], list[str]]:
    """Return the tensors of the only shard of tokens, and what was said."""
    _, output = build(folder, write(folder / "a.jsonl", *rows))
    config = {"eos_token_ids": [2], "vocab_size": 384, "image_token_id": TOKEN}
    params = {"verifier": {"config": config}, "data": {"sequence_length": length}, "date": DATE}
    made = make_job("tokens", folder / "tokens", params, inputs={"rows": output, "verifier": verifier})
    said = [event.text for event in run_here(tokens, made) if isinstance(event, Note)]
    return load_file(Path(made.output) / "shards/00000.safetensors"), said


def test_an_image_is_a_run_of_tokens_none_of_which_is_trained(tmp_path: Path, llava: Path) -> None:
    found, _ = encode(tmp_path, llava, answer(ask(data_url(RED))), answer(PLAIN),
                      answer({**parts(text("A"), {"type": "image", "image": data_url(BLUE)}, text("b"),
                                      {"type": "image", "image": data_url(RED)})}))  # fmt: skip
    ids, mask, offsets = found["input_ids"], found["loss_mask"], found["offsets"]
    assert [int((ids[a:b] == TOKEN).sum()) for a, b in pairwise(offsets)] == [RUN, 0, 2 * RUN]
    assert not mask[ids == TOKEN].any()
    assert mask.any()
    spans = found["image_spans"].tolist()
    assert [end - start for start, end in spans] == [RUN] * 3
    assert all((ids[start:end] == TOKEN).all() for start, end in spans)
    assert [bytes(one).hex() for one in found["image_sha256"]] == [sha256(one).hexdigest() for one in (RED, BLUE, RED)]
    # What is trained is the same text as without images.
    texts = [ids[a:b][mask[a:b] == 1].tolist() for a, b in pairwise(offsets)]
    assert texts[0] == texts[1] == texts[2]


def test_rows_without_images_make_a_shard_as_before(tmp_path: Path, llava: Path) -> None:
    found, _ = encode(tmp_path, llava, answer(PLAIN))
    assert sorted(found) == ["counts", "input_ids", "loss_mask", "offsets", "row", "split"]


def test_a_mark_that_is_no_image_leaves_its_row_out(tmp_path: Path, llava: Path) -> None:
    literal = {"messages": [{"role": "user", "content": "What does <image> mean?"}]}
    given = {"input_ids": [5, TOKEN, 6], "loss_mask": [0, 0, 1]}
    found, said = encode(tmp_path, llava, answer(literal), given, answer(ask(data_url(RED))))
    assert found["row"].tolist() == [2]
    assert said == ["2 of 3 rows were left out (`template_refused` 2); the first: a.jsonl:1: its text has 1 place for"
                    " no images"]  # fmt: skip


def test_a_row_that_is_cut_has_the_images_that_are_left_of_it(tmp_path: Path, llava: Path) -> None:
    row = answer(ask(data_url(RED)))
    row["messages"] += answer(ask(data_url(BLUE), "And this?"))["messages"]
    whole, _ = encode(tmp_path, llava, row)
    cut, _ = encode(tmp_path, llava, row, length=int(whole["image_spans"][1][1]) + 2)
    assert len(whole["image_spans"]) == 2
    assert [bytes(one).hex() for one in cut["image_sha256"]] == [sha256(RED).hexdigest()]
    assert (cut["input_ids"] == whole["input_ids"][: len(cut["input_ids"])]).all()


def test_folding_gives_back_what_the_template_wrote(llava: Path) -> None:
    eyes, ids = Eyes(llava, TOKEN), [7, TOKEN, TOKEN, 8, TOKEN]
    row, placed = eyes.unfolded(ids, [look(RED), look(BLUE), look(RED)])
    assert len(row) == 2 + 3 * RUN
    assert placed[1] == Placed(sha256(BLUE).hexdigest(), 1 + RUN, 1 + 2 * RUN)
    assert folded(row, placed, TOKEN) == ids
    with pytest.raises(ValueError, match="3 places for 1 image"):
        eyes.unfolded(ids, [look(RED)])


def test_a_verifier_without_a_processor_says_so(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, IMAGES)
    with pytest.raises(SpeccError, match="the verifier's processor of images cannot be loaded"):
        Eyes(tmp_path, TOKEN).run(4, 4)
