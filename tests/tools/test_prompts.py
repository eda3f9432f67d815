"""The shipped prompts are apart, and `tools/prompts.py` names what is not."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = ("everyday.jsonl", "more.jsonl", "wide.jsonl")
HELD_OUT = "held-out.jsonl"


@pytest.fixture(scope="module")
def prompts(root: Path) -> Path:
    return root / "specs" / "prompts"


def check(root: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / "prompts.py"), "check", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def write(path: Path, *conversations: tuple[str, ...]) -> Path:
    """Write conversations, each a user's turn, an assistant's, a user's and so on."""
    rows = [
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]}
        for turns in conversations
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_shipped_prompts_are_apart(root: Path, prompts: Path) -> None:
    done = check(root, *(prompts / name for name in (*TRAINING, HELD_OUT)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n0 errors, 10 notes\n"), done.stdout


def test_held_out_prompts_are_the_frozen_ones(prompts: Path) -> None:
    digest = hashlib.sha256((prompts / HELD_OUT).read_bytes()).hexdigest()
    assert re.findall(r"\b[0-9a-f]{64}\b", (prompts / "README.md").read_text(encoding="utf-8")) == [digest]


def test_readme_tells_the_counts(prompts: Path) -> None:
    readme = (prompts / "README.md").read_text(encoding="utf-8")
    for name in (*TRAINING, HELD_OUT):
        rows = [json.loads(line)["messages"] for line in (prompts / name).read_text(encoding="utf-8").splitlines()]
        several = sum(len(row) > 1 for row in rows)
        assert f"[{name}]({name}) | {len(rows):,} | {several} |" in readme


def test_skeleton_is_the_one_of_the_docstring(root: Path) -> None:
    tool = runpy.run_path(str(root / "tools" / "prompts.py"))
    examples = re.findall(r"^ {6}(What .*\?) +(what .*)$", tool["__doc__"], re.MULTILINE)
    assert len(examples) == 2
    for text, skeleton in examples:
        assert " ".join(tool["skeleton"](tool["words"](text))) == skeleton


@pytest.mark.parametrize(
    ("training", "held", "error"),
    [
        pytest.param("What makes popcorn pop?", "what makes POPCORN pop", "duplicate", id="same-words"),
        pytest.param(
            "Please tell me how a green plant turns light into sugar.",
            "I wonder how a green plant turns light into sugar and air.",
            "shared 8-gram: {} and {}: how a green plant turns light into sugar",
            id="8-gram",
        ),
        pytest.param(
            "Give me a recipe for soup.",
            "Give me a recipe for a cake that my aunt will like.",
            "shared opening: {} and {}: give me a recipe for",
            id="opening",
        ),
        pytest.param(
            "Name the best way to learn the piano in a year.",
            "Tell us the quickest road to cross the wide desert in a car.",
            "",
            id="different-enough",
        ),
        pytest.param(
            "Show the best way to learn the piano in a year.",
            "Name the quickest road to cross the wide desert in a car.",
            "shared template: {} and {}: _ the _ to _ the _ in a _",
            id="template",
        ),
    ],
)
def test_a_pair_is_named(root: Path, tmp_path: Path, training: str, held: str, error: str) -> None:
    one = write(tmp_path / "train.jsonl", ("How do tides work?",), (training,))
    two = write(tmp_path / "held.jsonl", (held,))
    done = check(root, one, two)
    if not error:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 1
    expected = (error if "{}" in error else error + ": {} and {}").format(f"{one}:2", f"{two}:1")
    assert f"error: {expected}" in done.stderr


def test_later_turns_and_further_training_files_are_compared(root: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", ("Hello there.",))
    two = write(tmp_path / "b.jsonl", ("Name a bird.", "The wren.", "How loud can such a small bird sing?"))
    held = write(tmp_path / "held.jsonl", ("Name a fish.", "The pike.", "How loud can such a whale sing?"))
    done = check(root, one, two, held)
    assert done.returncode == 1
    assert f"error: shared opening: {two}:1 and {held}:1: how loud can such a" in done.stderr


def test_a_training_prompt_given_twice_is_an_error(root: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "train.jsonl", ("Why do cats purr?",), ("Why do cats purr",))
    done = check(root, one, write(tmp_path / "held.jsonl", ("Where do storks go?",)))
    assert (done.returncode, done.stderr) == (1, f"error: duplicate: {one}:1 and {one}:2\n")


def test_five_words_in_a_row_are_a_note(root: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "train.jsonl", ("Sing while the bread is in the oven.",))
    two = write(tmp_path / "held.jsonl", ("My cake and the bread is in the car.",))
    done = check(root, one, two)
    assert done.returncode == 0
    assert f"note: shared 5-gram: {one}:1 and {two}:1: the bread is in the" in done.stdout


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '{"messages": []}', '{"messages": [{"role": "user"}]}',
     '{"messages": [{"role": "assistant", "content": "Hi"}]}'],
)  # fmt: skip
def test_a_line_of_another_form_is_named(root: Path, tmp_path: Path, line: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(line + "\n", encoding="utf-8")
    done = check(root, write(tmp_path / "train.jsonl", ("Hello.",)), bad)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {bad}:1: ")
    assert "Traceback" not in done.stderr
