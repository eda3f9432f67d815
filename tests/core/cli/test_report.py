"""`specc show --format html`: what it says, that all markup in it is ours, and how it looks in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from browser import Browser
from projects import SPEC, Project, make_project
from safetensor import one_tensor
from specc.core.cli import main
from specc.core.cli.benchmarks import benchmark
from specc.core.cli.charts import HEIGHT, WIDTH, Chart, Series, bars, lines, ticks
from specc.core.cli.report import Sheet, report
from specc.core.cli.sections import Built
from specc.core.contracts import Manifest
from specc.core.errors import Exit
from specc.core.store import Store
from stored import put

SVG: Final = "{http://www.w3.org/2000/svg}"
JUDGED: Final = """\
evaluate: {prompts: [{file: held-out.jsonl}]}
checks: {mean_acceptance_length: ">= 1.5", lossless: true}
"""
MATRIX: Final = "matrix: {train.seed: [1, 2]}\n"
BENCHMARK: Final[dict[str, Any]] = {
    "runtime": "vllm", "prompts": 24, "max_tokens": 64,
    "subsets": {"writing": {"prompts": 12}, "code": {"prompts": 12}},
    "cells": [
        {"temperature": temperature, "speculative_tokens": tokens, "batch_size": size, "drafts": 500,
         "draft_tokens": 500 * tokens, "accepted": 100 * tokens, "accepted_per_position": [100] * tokens,
         "output_tokens": 900, "mean_acceptance_length": 1 + 0.2 * tokens,
         "interval": [0.9 + 0.2 * tokens, 1.1 + 0.2 * tokens],
         "subsets": {
             name: {"drafts": 250, "accepted": 50 * tokens + more, "interval": [1.1, 1.2 + 0.2 * tokens]}
             for name, more in (("writing", 20), ("code", -20))
         },
         "lossless": {"identical": 4, "prompts": 4} if temperature == 0 else None}
        for temperature in (0.0, 0.7) for tokens in (1, 3) for size in (1, 16)
    ],
}  # fmt: skip
"""As `benchmark.json` holds it, with numbers that are made up."""
TIMED: Final[dict[str, Any]] = {
    "cells": [
        {"temperature": temperature, "speculative_tokens": tokens, "batch_size": size, "tokens_per_second": 90.0,
         "plain_tokens_per_second": 75.0, "speedup": 1.4 - 0.1 * tokens - 0.02 * size,
         "interval": [1.3 - 0.1 * tokens - 0.02 * size, 1.5 - 0.1 * tokens - 0.02 * size], "repeats": 3}
        for temperature in (0.0, 0.7) for tokens in (1, 3) for size in (1, 16)
    ],
    "advice": [
        {"temperature": 0.0, "batch_size": size, "speculative_tokens": 1, "speedup": 1.3 - 0.02 * size,
         "curve": [{"speculative_tokens": tokens, "speedup": 1.4 - 0.1 * tokens - 0.02 * size,
                    "tokens_per_second": 90.0} for tokens in (1, 3)]}
        for size in (1, 16)
    ],
}  # fmt: skip
"""As the run record of the stage `benchmark` holds it."""


@pytest.fixture
def measured(root: Path) -> dict[str, bytes]:
    """What a build of `specs/quickstart-avx2.yaml` measured, by stage."""
    folder = root / "tests/data/measured"
    return {"draft": (folder / "metrics.json").read_bytes(), "evaluation": (folder / "evaluation.json").read_bytes()}


def built(store: Store, measured: dict[str, bytes], name: str, **benchmark: Any) -> dict[str, Manifest]:
    """The artifacts of a build, which the store knows under `name`; keys are told apart by it."""
    made: dict[str, Manifest] = {}

    def make(stage: str, data: dict[str, bytes], *inputs: str, own: bool = True, **record: Any) -> None:
        key = f"{stage}{name if own else ''}".encode().hex()[:64]
        times = {"seconds": 49.9, "started": "2026-11-28T08:23:54Z", "host": "a-secret-host"}
        params: dict[str, Any] = {"name": name, "draft": {"algorithm": "eagle3"}, "verifier": {"name": "tiny"}}
        made[stage] = put(
            store, stage, data, {slot: made[slot] for slot in inputs}, key, record=times | record, **params
        )

    make("verifier", {"config.json": b"{}"}, own=False)
    make("tokens", {"index.json": b"[]"}, "verifier", own=False)
    make("draft", {"metrics.json": measured["draft"], "model.safetensors": one_tensor(), "name": name.encode()},
         "tokens", "verifier", tokens_per_second=1082.6)  # fmt: skip
    make("checkpoint", {"model.safetensors": one_tensor(), "name": name.encode()}, "draft", "verifier")
    make("evaluation", {"evaluation.json": measured["evaluation"], "name": name.encode()}, "checkpoint")
    if benchmark:
        make("benchmark", {"benchmark.json": json.dumps(BENCHMARK).encode()}, "checkpoint", **benchmark)
    for stage, item in made.items():
        store.note_last(name, stage, item)
    return made


@pytest.fixture
def project(quick_path: Path, measured: dict[str, bytes]) -> Project:
    """A project whose spec and whose matrix of two were built."""
    found = make_project(quick_path / "project")
    (found.folder / "held-out.jsonl").write_text('{"messages": [{"role": "user", "content": "Why?"}]}\n')
    (found.folder / "tiny.yaml").write_text(SPEC + JUDGED)
    (found.folder / "matrix.yaml").write_text((SPEC + JUDGED + MATRIX).replace("name: tiny", "name: many"))
    (found.folder / "benched.yaml").write_text((SPEC + JUDGED).replace("name: tiny", "name: benched"))
    store = Store(found.store)
    for name in ("tiny", "many train.seed=1", "many train.seed=2"):
        built(store, measured, name)
    return found


def html(project: Project, spec: str = "tiny.yaml") -> str:
    return project.run("show", spec, "--format", "html")[0]


class Reader(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.parts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def test_the_page_says_what_was_measured(project: Project) -> None:
    project.run("lock", "tiny.yaml")
    page = Reader(html(project))
    assert "EAGLE-3 draft for tiny built 28 Nov 2026, 08:23 UTC" in page.text
    assert "mean acceptance length 1.209 vllm, 569 drafts, untrained 1.00" in page.text
    assert "✗ mean acceptance length >= 1.5: not met, 1.209" in page.text
    assert "✓ lossless: 4 of 4 greedy outputs identical in fp32" in page.text
    assert "training 50 s 1,083 tokens/s" in page.text
    assert "replayed 569 120 1.211 0.199 0.011 0.002" in page.text
    assert "float32 16 of 16" in page.text
    assert "train.batch_tokens 4096 tiny.yaml:9:23" in page.text
    assert '"results": {}' in page.text, "the lock"
    assert "The spec has moved on since: it would build verifier, conversations, tokens" in page.text
    charts = [values["aria-labelledby"] for tag, values in page.elements if tag == "svg" and "role" in values]
    assert charts == [
        *(f"chart-{name}-title chart-{name}-desc" for name in ("loss", "right", "simulated", "accepted")),
        "specc-title specc-desc",
    ]


def test_the_page_holds_nothing_of_this_machine_and_loads_nothing(project: Project) -> None:
    for spec in ("tiny.yaml", "matrix.yaml", str(project.folder / "tiny.yaml")):
        text = html(project, spec)
        assert str(project.folder) not in text
        assert "a-secret-host" not in text
        loading = [
            (tag, name)
            for tag, values in Reader(text).elements
            for name, value in values.items()
            if name in ("src", "srcset", "data", "action") or (name == "href" and not str(value).startswith("#"))
        ]
        assert not loading
        assert not re.search(r"url\((?!#specc-arrow\))|@import", text)


def test_a_matrix_lays_its_curves_over_one_another(project: Project) -> None:
    text = html(project, "matrix.yaml")
    page = Reader(text)
    assert "2 builds for tiny" in page.text
    assert "build run by drafts accepted mean length replayed untrained identical in fp32 1 vllm 569 119" in page.text
    losses = picture(text, "chart-loss")
    assert [group.attrib["class"] for group in losses.iter(f"{SVG}g")] == ["series s1", "series s2"]
    assert losses.findtext(f"{SVG}desc") == "1: epoch 1 14.64, epoch 2 12.66; 2: epoch 1 14.64, epoch 2 12.66"
    assert "train.seed" not in [values.get("scope") for _, values in page.elements]
    assert page.text.count("verifier 2") <= 1, "what both are made of is one artifact"


def picture(text: str, name: str) -> ET.Element:
    """A chart of a page."""
    found = re.search(rf'<svg [^>]*aria-labelledby="{name}-title.*?</svg>', text, re.S)
    assert found
    return ET.fromstring(found[0].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))  # noqa: S314 - ours


def test_an_artifact_has_a_page_with_what_measured_it(project: Project) -> None:
    digest = Store(project.store).last("tiny", "checkpoint")
    assert digest
    page = Reader(html(project, digest.digest[:12]))
    assert f"checkpoint sha256:{digest.digest}" in page.text
    assert "mean acceptance length 1.209" in page.text
    assert f"specc serve --dry-run {digest.digest[:12]}" in page.text
    alone = Store(project.store).last("tiny", "tokens")
    assert alone
    assert "acceptance" not in Reader(html(project, alone.digest)).text


@pytest.mark.parametrize(
    "metrics",
    ['{"epochs": [{}]}', '{"epochs": 3}', '{"epochs": [{"epoch": 1, "loss": NaN, "validation_loss": Infinity}]}',
     '{"initial": {"epoch": 0, "positions": [{"counted": 1}]}}', "[1]"],
)  # fmt: skip
def test_measurements_of_anybody_end_in_words_at_worst(
    quick_path: Path, metrics: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECC_STORE", str(quick_path / "store"))
    made = put(Store(quick_path / "store"), "draft", {"metrics.json": metrics.encode()})
    code = main(["show", made.digest, "--format", "html"])
    assert (code, "cannot be read" in capsys.readouterr().err) in {(Exit.OK, False), (Exit.DIFFERENCE, True)}


def test_what_was_never_built_is_said(project: Project) -> None:
    _, words = project.run("show", "benched.yaml", "--format", "html", expect=1)
    assert "`benched` was never built here" in words


def test_a_benchmark_is_drawn_and_its_advice_said() -> None:
    section = benchmark(BENCHMARK, TIMED)
    titles = [figure.title for figure in section.figures]
    assert titles == [
        "Speed-up over batch size, temperature 0", "Speed-up over batch size, temperature 0.7",
        "Speed-up over draft length", "Acceptance length over draft length", "Acceptance length by subset",
    ]  # fmt: skip
    assert section.figures[0].numbers.rows == [["1", "1.28", "1.08"], ["16", "0.98", "0.78"]]
    assert section.figures[4].numbers.head == ["prompts", "1 token", "3 tokens"]
    assert section.figures[4].numbers.rows == [["writing", "1.28", "1.68"], ["code", "1.12", "1.52"]]
    assert section.tables[0].rows == [["0", "1", "1", "1.28×"], ["0", "16", "1", "0.98×, no gain"]]
    cells = section.folds[0].table
    assert cells
    assert cells.rows[0] == ["0", "1", "1", "500", "1.200", "1.100–1.300", "1.28", "1.18–1.38", "4 of 4"]
    assert cells.rows[-1][-1] == "-"
    alone = benchmark(BENCHMARK, {})
    assert [figure.title for figure in alone.figures] == titles[3:], "the run record is gone"


HOSTILE: Final = '"><img src=x onerror=alert(1)></style></script><script>alert(2)</script>&\x07'


def hostile(store: Store) -> str:
    """A page of artifacts that somebody made to run something."""
    metrics = {"best_epoch": 1, "initial": {"epoch": 0}, "epochs": [{"epoch": 1, "validation_loss": 2.0, "loss": 3.0}]}
    counts = {"drafts": 10, "accepted": 4, "accepted_per_position": [4], "mean_acceptance_length": 1.4}
    evaluation = {"served": counts, "runtime": HOSTILE, "lossless": {HOSTILE: {"identical": 1, "prompts": 1}}}
    bench = {**BENCHMARK, "runtime": HOSTILE, "cells": [
        {**one, "subsets": {HOSTILE: one["subsets"]["code"]}} for one in BENCHMARK["cells"]]}  # fmt: skip
    files = {"draft": ("metrics.json", metrics), "evaluation": ("evaluation.json", evaluation),
             HOSTILE.replace("/", ""): ("a", 1),
             "benchmark": ("benchmark.json", bench)}  # fmt: skip
    stages: dict[str, Manifest] = {}
    for stage, (name, data) in files.items():
        stages[stage] = put(store, stage, {name: json.dumps(data).encode()}, dict(stages), stage.encode().hex()[:64],
                            record={"started": HOSTILE, "seconds": 1.0, "benchmark": TIMED})  # fmt: skip
    one = Built(name=HOSTILE, stages=stages, store=store)
    sheet = Sheet(title=HOSTILE, values={HOSTILE: HOSTILE, "verifier.name": HOSTILE, "draft.algorithm": HOSTILE},
                  origins={HOSTILE: HOSTILE}, lock=HOSTILE, stale=[HOSTILE], serve=HOSTILE)  # fmt: skip
    return report([one], sheet) + report([one, Built(name="b" + HOSTILE, stages=stages, store=store)], sheet)


def test_nothing_out_of_a_store_becomes_markup(quick_path: Path) -> None:
    found = Reader(hostile(Store(quick_path / "store")))
    assert {tag for tag, _ in found.elements} == {
        "html", "head", "meta", "title", "style", "body", "header", "p", "h1", "ul", "li", "code", "dl", "dt", "dd",
        "span", "small", "div", "nav", "a", "main", "section", "h2", "h3", "figure", "figcaption", "svg", "desc", "g",
        "path", "rect", "text", "defs", "marker", "details", "summary", "table", "caption", "thead", "tbody", "tr",
        "th", "td", "pre", "footer",
    }  # fmt: skip
    assert not [name for _, values in found.elements for name in values if name.startswith("on")]
    assert "onerror=alert(1)>" in found.text


@example(low=5e-324, span=0.0)
@given(st.floats(-1e4, 1e4), st.just(0.0) | st.floats(0.01, 1e6))
def test_ticks_are_round_evenly_spaced_and_reach_around_the_values(low: float, span: float) -> None:
    found = ticks(low, low + span)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= low + span - 1e-6 * step
    assert 2 <= len(found) <= 8
    assert all(abs(b - a - step) < 1e-6 * step for a, b in pairwise(found))


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(-1e4, 1e4)), min_size=1, max_size=12, unique_by=lambda p: p[0]))
def test_points_are_drawn_inside_their_chart_in_the_order_of_their_values(points: list[tuple[int, float]]) -> None:
    chart = Chart(title="t", x="x", y="y", series=[Series(name="a", points=sorted(points))])
    root = ET.fromstring(lines(chart, "n"))  # noqa: S314 - ours
    places = [tuple(map(float, re.findall(r"-?[\d.]+", path.attrib["transform"]))) for path in root.iter("path")
              if path.attrib["class"] == "mark"]  # fmt: skip
    assert len(places) == len(points)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    by_value = sorted(zip(sorted(points), places, strict=True), key=lambda pair: pair[0][1])
    downs = [place[1] for _, place in by_value]
    assert downs == sorted(downs, reverse=True)


def test_a_bar_is_as_high_as_its_value() -> None:
    chart = Chart(title="t", x="x", y="y", series=[Series(name="a", points=[(0, 1.0), (1, 0.5)])], zero=True)
    root = ET.fromstring(bars(chart, "n"))  # noqa: S314 - ours
    high, low = (float(bar.attrib["height"]) for bar in root.iter("rect"))
    assert high == pytest.approx(2 * low, abs=0.1)


# In a browser

SIZES: Final = ((390, 844), (360, 640), (1280, 800))
CONTRAST: Final = """
(() => {
  const channel = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const paper = element => {
    const node = element.closest('.lineage .node');
    const rect = node ? node.querySelector('rect') : element.closest('.lineage') && document.querySelector('.paper');
    if (rect && getComputedStyle(rect).fill !== 'none') return parse(getComputedStyle(rect).fill);
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) return color;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('title, desc, style')) continue;
    const style = getComputedStyle(element), svg = element.closest('svg');
    const below = paper(element), color = parse(svg ? style.fill : style.color);
    color[3] *= Number(style.opacity);
    const [a, b] = [light(over(color, below)), light(below)].sort((one, two) => two - one);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
})()
"""
OUTSIDE: Final = """
[...document.querySelectorAll('svg[role=img] text')].filter(text => {
  const a = text.getBoundingClientRect(), b = text.closest('svg').getBoundingClientRect();
  return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).map(text => text.textContent)
"""
OVERLAPPING: Final = """
[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.getBoundingClientRect(), text.textContent]);
  return boxes.flatMap(([a, one], i) => boxes.slice(i + 1).filter(([b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
  ).map(([, other]) => [svg.querySelector('title').textContent, one, other]));
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def test_the_page_in_a_browser(project: Project, measured: dict[str, bytes], browser: Browser) -> None:
    """One build with a benchmark, and a matrix: on telephones and on a desktop, on a light one and a dark one."""
    one = built(Store(project.store), measured, "benched", benchmark=TIMED)
    texts = {"one": html(project, one["benchmark"].digest), "many": html(project, "matrix.yaml")}
    for name, text in texts.items():
        path = project.folder / f"{name}.html"
        path.write_text(text)
        for width, height in SIZES:
            for dark in (False, True):
                browser.open(path, width=width, height=height, dark=dark)
                where = f"{name} at {width}, {'dark' if dark else 'light'}"
                assert browser.requests() == [path.as_uri()], where
                assert browser.complaints() == [], where
                browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
                assert browser.run("document.documentElement.scrollWidth") == width, where
                contrasts = browser.run(CONTRAST)
                assert len(contrasts) > 200, where
                assert min(contrasts) >= [4.5], (where, min(contrasts))
                assert browser.run(OUTSIDE) == [], where
                assert browser.run(OVERLAPPING) == [], where
                assert browser.run("Math.min(...[...document.querySelectorAll('.chart text')]"
                                   ".map(text => text.getBoundingClientRect().height))") >= 10, where  # fmt: skip


def test_the_picture_of_a_page_is_light_or_dark_and_has_something_on_it(project: Project, browser: Browser) -> None:
    """Fonts differ between machines, so that pictures are not compared bit by bit."""
    path = project.folder / "page.html"
    path.write_text(html(project, "matrix.yaml"))
    seen: dict[bool, dict[str, Any]] = {}
    for dark in (False, True):
        browser.open(path, width=390, height=844, dark=dark)
        top = browser.run("document.getElementById('training').getBoundingClientRect().top")
        browser.run(f"window.scrollTo(0, {top})")
        seen[dark] = browser.look(browser.picture())
    for dark, found in seen.items():
        assert (sum(found["corner"]) < 3 * 40) if dark else (sum(found["corner"]) > 3 * 240)
        assert 0.75 < found["paper"] < 0.98, "text and charts cover a part of it"
        assert len(found["colours"]) >= 2, "the two curves have colours of their own"
    assert seen[True]["colours"] != seen[False]["colours"]


def test_a_browser_runs_nothing_of_a_hostile_store(quick_path: Path, browser: Browser) -> None:
    path = quick_path / "hostile.html"
    path.write_text(hostile(Store(quick_path / "store")), encoding="utf-8")
    browser.open(path, width=390, height=844, dark=False)
    assert browser.requests() == [path.as_uri()]
    assert browser.run("document.images.length + document.scripts.length") == 0
    assert browser.run("document.title").startswith('"><img src=x')
    assert browser.run("document.documentElement.scrollWidth") == 390
