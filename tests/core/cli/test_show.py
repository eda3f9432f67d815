"""`specc show`: an artifact's page, by id and by spec."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from safetensor import one_tensor
from specc.core.cli import main
from specc.core.contracts import Manifest
from specc.core.errors import Exit
from specc.core.store import Store
from stored import EVALUATION, METRICS, put


@pytest.fixture
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SPECC_STORE", str(quick_path / "store"))
    return Store(quick_path / "store")


@pytest.fixture
def built(store: Store) -> dict[str, Manifest]:
    """The artifacts of a small build."""
    verifier = put(store, "verifier", {"config.json": b"{}"})
    tokens = put(store, "tokens", {"index.json": b"[]"}, {"verifier": verifier})
    trained = {"metrics.json": json.dumps(METRICS).encode(), "model.safetensors": one_tensor()}
    train = {"optimizer": {"learning_rate": 1e-3}, "epochs": 2}
    draft = put(store, "draft", trained, {"tokens": tokens, "verifier": verifier}, train=train)
    checkpoint = put(store, "checkpoint", {"model.safetensors": one_tensor()}, {"draft": draft, "verifier": verifier},
                     name="tiny", stages={"draft": {"key": draft.key}})  # fmt: skip
    evaluation = put(
        store, "evaluation", {"evaluation.json": json.dumps(EVALUATION).encode()}, {"checkpoint": checkpoint}
    )
    return {item.stage: item for item in (verifier, tokens, draft, checkpoint, evaluation)}


def test_a_drafts_page(built: dict[str, Manifest], store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    draft, tokens, verifier = (built[name].digest for name in ("draft", "tokens", "verifier"))
    assert main(["show", draft[:8]]) == Exit.OK
    assert (
        capsys.readouterr().out
        == f"""\
draft sha256:{draft}
  folder    {store.path(draft)}
  size      {built["draft"].size} B in 2 files
  key       draft{"0" * 59}
  made      2026-01-02T03:04:05Z, in 62 s
  numerics  isa=amx threads=2

parameters
  train.epochs                   2
  train.optimizer.learning_rate  0.001

made of
  ├─ tokens {tokens[:12]}  2 B
  │  └─ verifier {verifier[:12]}  2 B
  └─ verifier {verifier[:12]}  2 B

measured
  epoch  loss   validation  acceptance length (simulated)
  0      -      5.500       1.000
  1 *    3.250  3.000       1.750
  2      2.500  3.125       1.625
"""
    )


def test_an_evaluations_page(built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", built["evaluation"].digest]) == Exit.OK
    out = capsys.readouterr().out
    assert (
        out[out.index("measured") :]
        == """\
measured
             drafts  accepted  mean length  accepted by position
  served     100     90        1.900        0.60 0.20 0.10
  untrained  190     0         1.000        0.00 0.00 0.00
  simulated  100     92        1.920        0.61 0.21 0.10
  greedy output in fp32: 4 of 4 prompts identical
"""
    )


def test_a_checkpoints_page_says_how_to_serve_it(
    built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    digest = built["checkpoint"].digest
    assert main(["show", digest]) == Exit.OK
    out = capsys.readouterr().out
    assert out.endswith(f"serve it\n  specc serve {digest[:12]}\n")
    assert "stages" not in out


def test_an_ancestor_is_shown_as_this_build_made_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The same tokens came from two verifiers, the second time in the build at hand."""
    first, second = (put(store, "verifier", {"config.json": data}, key=data.hex()) for data in (b"1", b"2"))
    put(store, "tokens", {"index.json": b"[]"}, {"verifier": first}, key="first")
    tokens = put(store, "tokens", {"index.json": b"[]"}, {"verifier": second}, key="second")
    checkpoint = put(store, "checkpoint", {"a": b""}, {"tokens": tokens}, stages={"tokens": {"key": tokens.key}})
    main(["show", checkpoint.digest])
    out = capsys.readouterr().out
    assert second.digest[:12] in out
    assert first.digest[:12] not in out


def test_an_ancestor_that_is_gone_is_said_to_be(
    built: dict[str, Manifest], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.remove(built["tokens"].digest)
    main(["show", built["draft"].digest])
    assert f"├─ tokens {built['tokens'].digest[:12]} (no longer in the store)" in capsys.readouterr().out


def test_the_page_as_data(built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", built["draft"].digest, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == f"sha256:{built['draft'].digest}"
    assert found["measured"] == METRICS
    assert found["inputs"] == dict(built["draft"].inputs)
    assert found["record"]["seconds"] == 62.0
    assert [file["path"] for file in found["files"]] == ["metrics.json", "model.safetensors"]


def test_a_spec_shows_its_last_checkpoint_and_evaluation(
    built: dict[str, Manifest], store: Store, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = root / "specs/quickstart.yaml"
    assert main(["show", str(spec)]) == Exit.INPUT
    assert "was never built here" in capsys.readouterr().err
    from specc.core.language import check

    name = check(spec)[0].spec.name
    store.note_last(name, "draft", built["draft"])
    assert main(["show", str(spec)]) == Exit.OK
    assert capsys.readouterr().out.startswith("draft sha256:")
    for stage in ("checkpoint", "evaluation"):
        store.note_last(name, stage, built[stage])
    assert main(["show", str(spec)]) == Exit.OK
    out = capsys.readouterr().out
    assert out.startswith("checkpoint sha256:")
    assert f"specc serve {spec}" in out
    assert "\nevaluation sha256:" in out
    main(["show", str(spec), "--json"])
    assert list(json.loads(capsys.readouterr().out)["artifacts"]) == ["checkpoint", "evaluation"]
    store.remove(built["checkpoint"].digest)
    assert main(["show", str(spec)]) == Exit.OK
    assert "no longer in the store" in capsys.readouterr().out


def test_an_id_that_means_nothing_says_what_to_type(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "deadbeef"]) == Exit.INPUT
    err = capsys.readouterr().err
    assert "no artifact `deadbeef` in the store" in err
    assert "hint: `specc status SPEC`" in err


def drawn(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["show", *arguments]) == Exit.OK
    return capsys.readouterr().out


def edges_of(*made: Manifest) -> set[tuple[str, str, str]]:
    """What manifests say: (slot, what it was made of, what was made)."""
    return {(slot, digest, item.digest) for item in made for slot, digest in item.inputs.items()}


SVG = "{http://www.w3.org/2000/svg}"


def picture(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - we wrote it


def boxes(root: ET.Element) -> dict[str, tuple[str, list[str]]]:
    """The boxes of a drawing by digest: their class and lines."""
    return {
        group.attrib["id"].removeprefix("specc-"): (
            group.attrib["class"], [line.text or "" for line in group.iter(f"{SVG}text")],
        )
        for group in root.iter(f"{SVG}g")
    }  # fmt: skip


def arrows(root: ET.Element) -> set[tuple[str, str, str]]:
    """The arrows of a drawing, as `edges_of` has them."""
    return {
        (path.attrib["data-slot"], path.attrib["data-from"], path.attrib["data-to"])
        for path in root.iter(f"{SVG}path")
        if path.attrib["class"] == "edge"
    }


def test_the_lineage_as_data_has_inputs_before_what_they_made(
    built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    lineage = json.loads(drawn(capsys, built["evaluation"].digest, "--format", "json"))["lineage"]
    assert {node["digest"]: node["stage"] for node in lineage} == {item.digest: name for name, item in built.items()}
    assert {(slot, digest, node["digest"]) for node in lineage for slot, digest in node["inputs"].items()} == edges_of(
        *built.values()
    )
    order = [node["digest"] for node in lineage]
    assert all(order.index(source) < order.index(target) for _, source, target in edges_of(*built.values()))
    assert [(node["key"], node["size"]) for node in lineage] == [
        (built[node["stage"]].key, built[node["stage"]].size) for node in lineage
    ]


def test_a_drawing_has_every_artifact_and_every_input(
    built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    root = picture(drawn(capsys, built["evaluation"].digest, "--format", "svg"))
    assert boxes(root) == {
        item.digest: ("node shown" if name == "evaluation" else "node", [name, item.digest[:12], f"{item.size} B"])
        for name, item in built.items()
    }
    assert arrows(root) == edges_of(*built.values())
    assert root.findtext(f"{SVG}title") == f"Lineage of evaluation {built['evaluation'].digest[:12]}"
    said = root.findtext(f"{SVG}desc") or ""
    assert f"draft {built['draft'].digest[:12]} is made of tokens {built['tokens'].digest[:12]}, verifier" in said
    assert root.attrib["aria-labelledby"].split() == [root[0].attrib["id"], root[1].attrib["id"]]
    assert not [text for text in root.itertext() if "http" in text], "it needs no font and no file from elsewhere"


def test_boxes_do_not_overlap_and_no_line_crosses_one(
    built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    root = picture(drawn(capsys, built["evaluation"].digest, "--format", "svg"))
    rectangles = [
        tuple(int(rectangle.attrib[name]) for name in ("x", "y", "width", "height"))
        for rectangle in root.iterfind(f"{SVG}g/{SVG}rect")
    ]
    _, _, wide, high = map(int, root.attrib["viewBox"].split())
    for index, (x, y, width, height) in enumerate(rectangles):
        assert 0 < x < x + width < wide
        assert 0 < y < y + height < high
        for left, top, *_ in rectangles[:index]:
            assert abs(x - left) >= width or abs(y - top) >= height
    for path in root.iter(f"{SVG}path"):
        if path.attrib["class"] == "edge":
            line = re.match(r"M(\d+) (\d+) H(\d+)", path.attrib["d"])
            assert line
            start, row, turn = map(int, line.groups())
            crossed = [
                (x, y) for x, y, width, height in rectangles if start - width < x < turn and y < row < y + height
            ]
            assert not crossed, path.attrib["d"]


def test_a_flowchart_has_every_artifact_and_every_input(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    verifier = put(store, "verifier", {"config.json": b"{}"})
    rows = put(store, "conversations", {"rows": b"[]"})
    tokens = put(store, "tokens", {"index.json": b"[]"}, {"rows": rows, "verifier": verifier})
    assert (
        drawn(capsys, tokens.digest, "--format", "mermaid")
        == f"""\
flowchart LR
  accTitle: Lineage of tokens {tokens.digest[:12]}
  n0["conversations<br/>{rows.digest[:12]}<br/>2 B"]
  n1["verifier<br/>{verifier.digest[:12]}<br/>2 B"]
  n2["tokens<br/>{tokens.digest[:12]}<br/>2 B"]
  n0 -->|"rows"| n2
  n1 --> n2
  classDef shown stroke-width:3px
  class n2 shown
"""
    )


HOSTILE = '"]\n--><b>&\x07#'
"""What ends a label, a line and an element, and what XML has no way to say."""


def test_names_in_a_store_of_anybody_are_no_markup(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    bad = put(store, "b", {"a": b"1"}, key="b")
    made = put(store, HOSTILE, {"a": b"2"}, {HOSTILE: bad}, key="c")
    clean = '"]�--><b>&�#'
    root = picture(drawn(capsys, made.digest, "--format", "svg"))
    assert boxes(root)[made.digest][1][0] == clean
    assert arrows(root) == {(clean, bad.digest, made.digest)}
    chart = drawn(capsys, made.digest, "--format", "mermaid").splitlines()
    safe = "#34;#93;#65533;--#62;#60;b#62;#38;#65533;#35;"
    assert chart[1] == f"  accTitle: Lineage of {safe} {made.digest[:12]}"
    assert chart[3:5] == [f'  n1["{safe}<br/>{made.digest[:12]}<br/>1 B"]', f'  n0 -->|"{safe}"| n1']


def test_what_is_gone_and_what_runs_in_a_circle_is_drawn(
    built: dict[str, Manifest], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.remove(built["tokens"].digest)
    root = picture(drawn(capsys, built["draft"].digest, "--format", "svg"))
    assert boxes(root)[built["tokens"].digest] == (
        "node gone",
        ["artifact", built["tokens"].digest[:12], "not in the store"],
    )
    assert "not in the store" in drawn(capsys, built["draft"].digest, "--format", "mermaid")
    manifest = store.root / "manifests" / f"{built['verifier'].digest}.json"
    raw = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**raw, "inputs": {"draft": built["draft"].digest, "self": raw["digest"]}}))
    root = picture(drawn(capsys, built["draft"].digest, "--format", "svg"))
    assert ("self", raw["digest"], raw["digest"]) in arrows(root)
    assert "draft" in drawn(capsys, built["draft"].digest)


def test_a_spec_is_drawn_with_all_its_results_in_one_picture(
    built: dict[str, Manifest], store: Store, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = root / "specs/quickstart.yaml"
    for item in built.values():
        store.note_last("smollm2-135m-eagle3", item.stage, item)
    found = picture(drawn(capsys, str(spec), "--format", "svg"))
    shown = {digest for digest, (kind, _) in boxes(found).items() if kind == "node shown"}
    assert shown == {built["checkpoint"].digest, built["evaluation"].digest}
    assert set(boxes(found)) == {item.digest for item in built.values()}
