"""What a user sees while a stage runs: word by word on a pipe, picture by picture on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest

from specc.core.contracts import Manifest, Note, Progress
from specc.core.execute.reporter import Reporter

MANIFEST = Manifest(digest="3c1f2a9d0b1c" + "0" * 52, tensors=None, stage="draft", version=1, key="f" * 64, params={},
                    facets={}, inputs={}, files=(("model.safetensors", 12_300_000, "a" * 64),))  # fmt: skip


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    encoding = "utf-8"  # pyright: ignore


def reporter(clock: Clock, stream: io.StringIO, **changes: Any) -> Reporter:
    return Reporter(stream, clock=clock, **changes)


def step(done: float, total: float | None = 400, unit: str = "steps", text: str = "") -> Progress:
    return Progress(done=done, total=total, unit=unit, text=text)


PLAIN = """\
draft: started (key a1b2c3d4, from step 100)
draft: 28 %, 112/400 steps, 4.0 steps/s, 1:12 left, epoch 1
draft: warning: the loss mask is all ones
draft: 30 %, 120/400 steps, 4.0 steps/s, 1:10 left
draft: 40 %, 160/400 steps, 2.5 steps/s, 1:36 left
draft: 100 %, 400/400 steps, 5.0 steps/s
draft: sha256:3c1f2a9d0b1c, 12 MB, 1:24
"""


def test_plain_lines_on_a_pipe() -> None:
    clock, stream = Clock(), Screen()
    shown = reporter(clock, stream)
    shown.stage_started("draft", "a1b2c3d4" + "0" * 56, "from step 100")
    for now, event in [
        (0.0, step(100)), (0.5, step(110)), (3.0, step(112, text="epoch 1")), (3.5, step(119)), (5.0, step(120)),
        (15.0, step(125)), (24.0, step(160)), (60.0, step(400)),
    ]:  # fmt: skip
        clock.now = now
        if now == 3.5:
            shown.note(Note(text="the loss mask is all ones", level="warning"))
        if now != 15.0:
            shown.progress(event)
    shown.stage_done("draft", MANIFEST, 84.0)
    assert stream.getvalue() == PLAIN
    assert "\x1b" not in stream.getvalue()


def test_a_quiet_stage_says_something_every_ten_seconds_and_a_fast_one_once_a_second() -> None:
    clock, stream = Clock(), Screen()
    shown = reporter(clock, stream)
    shown.stage_started("tokens", "0" * 64)
    for tenth in range(301):
        clock.now = tenth / 10
        shown.progress(step(tenth, total=None, unit="rows"))
    lines = stream.getvalue().splitlines()
    assert lines == ["tokens: started (key 00000000)", "tokens: 100 rows, 10.0 rows/s", "tokens: 200 rows, 10.0 rows/s",
                     "tokens: 300 rows, 10.0 rows/s"]  # fmt: skip
    clock.now = 100
    shown.stage_started("tokens", "0" * 64)
    for tenth in range(21):
        clock.now = 100 + tenth / 10
        shown.progress(step(tenth, total=20, unit="rows"))
    assert len(stream.getvalue().splitlines()) == len(lines) + 3


def test_a_terminal_has_one_live_line() -> None:
    clock, stream = Clock(), Screen()
    shown = reporter(clock, stream, terminal=True, colour=False, width=lambda: 120)
    shown.stage_started("draft", "a1b2c3d4" + "0" * 56)
    for now in (0.0, 10.0, 10.01, 10.05):
        clock.now = now
        shown.progress(step(now * 20, text="loss 2.31"))
    shown.note(Note(text="a sentence"))
    shown.stage_done("draft", MANIFEST, 20.0)
    bar = "━" * 12 + "╌" * 12
    live = f"draft            50 %  {bar}  200/400 steps  20.0 steps/s, 10 s left  loss 2.31"
    pictures = stream.getvalue().split("\r\x1b[2K")
    assert pictures == [
        "",
        "draft          starting",
        f"draft             0 %  {'╌' * 24}  0/400 steps  loss 2.31",
        live,  # and none for the two that came within a tenth of a second
        "draft: a sentence\n",
        live,
        "✓ draft: sha256:3c1f2a9d0b1c, 12 MB, 20 s\n",
    ]


@pytest.mark.parametrize("width", [0, 1, 10, 20, 30, 50, 60, 80])
def test_a_narrow_terminal_gets_less_and_never_two_lines(width: int) -> None:
    clock, stream = Clock(), Screen()
    shown = reporter(clock, stream, terminal=True, colour=False, width=lambda: width)
    shown.stage_started("hidden_states", "0" * 64)
    for now in (1.0, 3.0):
        clock.now = now
        shown.progress(step(now * 50, text="a long word on what it does"))
    pictures = stream.getvalue().split("\r\x1b[2K")
    assert max(map(len, pictures)) <= max(0, width - 1)
    last = pictures[-1]
    assert "hidden_states".startswith(last[:13].strip())


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(Screen):
        def isatty(self) -> bool:
            return True

    for name, value, coloured in (("NO_COLOR", "", True), ("NO_COLOR", "1", False)):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv(name, value)
        stream = Terminal()
        shown = Reporter(stream, width=lambda: 100)
        shown.stage_started("draft", "0" * 64)
        shown.progress(step(200))
        assert ("\x1b[36m" in stream.getvalue()) is coloured
        assert "\r\x1b[2K" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    Reporter(stream).stage_started("draft", "0" * 64)
    assert "\x1b" not in stream.getvalue()


def test_an_ascii_stream_gets_ascii_and_an_engines_escapes_move_no_cursor() -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"  # pyright: ignore

    clock, stream = Clock(), Ascii()
    shown = reporter(clock, stream, terminal=True, colour=False, width=lambda: 100)
    shown.stage_started("draft", "0" * 64)
    shown.progress(step(200, text="é\x1b[2Jand\nmore"))
    shown.note(Note(text="\x1b[31mred\r\n"))
    assert stream.getvalue().isascii()
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()
    assert "#" * 12 + "-" * 12 in stream.getvalue()


def test_the_start_of_an_engine_is_in_no_rate() -> None:
    clock, stream = Clock(), Screen()
    shown = reporter(clock, stream)
    shown.stage_started("responses", "0" * 64)
    for now, event in [(0.0, step(0, 100, "rows", "starting vLLM")), (50.0, step(0, 100, "rows")),
                       (60.0, step(20, 100, "rows"))]:  # fmt: skip
        clock.now = now
        shown.progress(event)
    assert stream.getvalue().splitlines()[-1] == "responses: 20 %, 20/100 rows, 2.0 rows/s, 40 s left"


def test_a_rate_begins_anew_with_other_work() -> None:
    clock, stream = Clock(), Screen()
    shown = reporter(clock, stream)
    shown.stage_started("verifier", "0" * 64)
    for now, event in [(0.0, step(0, 1000, "bytes")), (10.0, step(500, 1000, "bytes")), (20.0, step(1, 10, "files")),
                       (31.0, step(2, 10, "files"))]:  # fmt: skip
        clock.now = now
        shown.progress(event)
    assert stream.getvalue().splitlines()[1:] == [
        "verifier: 50 %, 500 B/1 kB, 50.0 bytes/s, 10 s left",
        "verifier: 10 %, 1/10 files",
        "verifier: 20 %, 2/10 files, 0.09 files/s, 1:28 left",
    ]
