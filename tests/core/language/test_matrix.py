"""`matrix`: which builds there are, what they are called, where their values stand, and what is refused."""

from __future__ import annotations

import pytest

from specc.core.errors import Exit, SpeccError
from specc.core.language.check import Checked, check_document
from specc.core.language.document import Document
from specc.core.language.matrix import choose, choose_one, name_of, parts_of

HEAD = """\
version: 1
name: sweep
verifier: {model: ./tiny}
draft: {algorithm: eagle3}
data: {sources: [{file: a.jsonl}], sequence_length: 512, responses: {max_tokens: 64}}
train: {optimizer: {learning_rate: 1e-5}, batch_tokens: 1024}
"""
RATE = "train.optimizer.learning_rate"


def builds(matrix: str, head: str = HEAD) -> dict[str, Checked]:
    return {found.build: found for found in check_document(Document.parse(f"{head}matrix:\n{matrix}", "s.yaml"))}


def refused(matrix: str, head: str = HEAD) -> list[tuple[str | None, str]]:
    with pytest.raises(SpeccError) as caught:
        builds(matrix, head)
    return [(error.id, str(error.where)) for error in caught.value.errors]


def test_a_spec_without_a_matrix_is_one_build_without_a_name() -> None:
    (only,) = check_document(Document.parse(HEAD, "s.yaml"))
    assert only.build == ""


def test_every_combination_is_a_build_in_the_order_of_the_matrix() -> None:
    found = builds(f"  {RATE}: [1e-3, 1e-4]\n  draft.layers: [1, 2, 3]\n")
    assert list(found) == [f"draft.layers={layers},{RATE}={rate}"
                           for rate in ("0.001", "0.0001") for layers in (1, 2, 3)]  # fmt: skip
    values = found[f"draft.layers=2,{RATE}=0.0001"].spec.values()
    assert (values["draft"]["layers"], values["train"]["optimizer"]["learning_rate"]) == (2, 1e-4)
    assert values["train"]["batch_tokens"] == 1024


def test_names_are_canonical() -> None:
    assert name_of({"b": 1e-4, "a": 1.0, "c": "kl"}) == "a=1,b=0.0001,c=kl"
    assert name_of({"a": "true", "b": True, "c": None}) == 'a="true",b=true,c=null'
    assert name_of({"a": {"y": 1, "x": [1, 2]}}) == 'a={"x":[1,2],"y":1}'
    assert name_of({"a": "two words", "b": "1e3"}) == 'a="two words",b="1e3"'
    assert parts_of("a.b=[1,2,3],c=0.1") == ["a.b=[1,2,3]", "c=0.1"]
    assert parts_of("") == []


def test_values_stand_where_the_matrix_has_them() -> None:
    document = builds(f"  {RATE}: [1e-3, 1e-4]\n")[f"{RATE}=0.0001"].document
    assert str(document.position(("train", "optimizer", "learning_rate"))) == "s.yaml:8:41"
    assert "train.optimizer.learning_rate" in document.written()
    assert "matrix" not in document.data


def test_a_section_that_is_not_there_is_made_and_a_short_form_gives_way() -> None:
    found = builds(
        "  train.zero.stage: [1, 2]\n  train.loss.ce: [0.1, 0.5]\n", HEAD.replace("train: {", "train: {loss: kl, ")
    )
    values = [one.spec.values()["train"] for one in found.values()]
    assert [value["zero"]["stage"] for value in values] == [1, 1, 2, 2]
    assert [value["loss"] for value in values] == [{"ce": 0.1}, {"ce": 0.5}] * 2


def test_exclude_leaves_out_what_has_all_of_its_values() -> None:
    found = builds(
        f"  {RATE}: [1e-3, 1e-4]\n  draft.layers: [1, 2]\n  exclude: [{{draft.layers: 2, {RATE}: 0.0001}}]\n"
    )
    assert list(found) == [f"draft.layers={layers},{RATE}={rate}" for layers, rate in
                           ((1, "0.001"), (2, "0.001"), (1, "0.0001"))]  # fmt: skip


def test_include_adds_to_what_fits_and_else_is_a_build_of_its_own() -> None:
    """The rule of GitHub's workflows, with its own example's shape."""
    found = builds(
        f"  {RATE}: [1e-3, 1e-4]\n  draft.layers: [1, 2]\n  include:\n"
        f"    - {{draft.layers: 2, train.epochs: 9}}\n    - {{draft.layers: 3, {RATE}: 1e-3}}\n"
    )
    assert list(found) == [
        f"draft.layers=1,{RATE}=0.001", f"draft.layers=2,train.epochs=9,{RATE}=0.001",
        f"draft.layers=1,{RATE}=0.0001", f"draft.layers=2,train.epochs=9,{RATE}=0.0001",
        f"draft.layers=3,{RATE}=0.001",
    ]  # fmt: skip
    everywhere = builds(f"  {RATE}: [1e-3, 1e-4]\n  include: [{{train.seed: 7}}]\n")
    assert list(everywhere) == [f"{RATE}=0.001,train.seed=7", f"{RATE}=0.0001,train.seed=7"]


def test_a_matrix_may_be_a_list_of_builds_alone() -> None:
    found = builds("  include:\n    - {train.seed: 1}\n    - {train.seed: 2, train.epochs: 4}\n")
    assert list(found) == ["train.seed=1", "train.epochs=4,train.seed=2"]


def test_fields_of_one_member_of_a_union_go_with_that_member() -> None:
    found = builds(
        "  train.optimizer.name: [adamw, muon]\n"
        "  include: [{train.optimizer.name: muon, train.optimizer.momentum: 0.8}]\n"
    )
    assert [one.spec.values()["train"]["optimizer"].get("momentum") for one in found.values()] == [None, 0.8]
    (error,) = refused("  train.optimizer.name: [adamw, muon]\n  train.optimizer.momentum: [0.8]\n")
    assert error == ("E0106", "s.yaml:9:3")


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ("  train.lr: [1]\n", [("E0101", "s.yaml:8:3")]),
        ("  name: [a, b]\n", [("E0101", "s.yaml:8:3")]),
        ("  runtime.threads: [1, 2]\n", [("E0101", "s.yaml:8:3")]),
        ("  train: [{epochs: 3}]\n", [("E0101", "s.yaml:8:3")]),
        ("  data.sources.file: [a.jsonl]\n", [("E0101", "s.yaml:8:3")]),
        (f"  {RATE}: 1e-3\n", [("E0102", "s.yaml:8:34")]),
        (f"  {RATE}: []\n", [("E0102", "s.yaml:8:34")]),
        (f"  {RATE}: [1e-3, fast]\n", [("E0102", "s.yaml:8:41")]),
        (f"  {RATE}: [1e-3, 0.001]\n", [("E0403", "s.yaml:8:41")]),
        ("  data.sequence_length: [512, 2048]\n", [("E0203", "s.yaml:6:57")]),
        ("  train.loss: [kl]\n  train.loss.kl: [0.5]\n", [("E0402", "s.yaml:9:3")]),
        (f"  {RATE}: [1e-3]\n  exclude: [{{draft.layers: 1}}]\n", [("E0404", "s.yaml:9:14")]),
        (f"  {RATE}: [1e-3]\n  exclude: [{{{RATE}: 1e-4}}]\n", [("E0404", "s.yaml:9:13")]),
        (f"  {RATE}: [1e-3]\n  exclude: [{{{RATE}: 1e-3}}]\n", [("E0404", "s.yaml:7:1")]),
        (f"  include: [{{{RATE}: fast}}]\n", [("E0102", "s.yaml:8:45")]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_where_it_stands(matrix: str, expected: list[tuple[str, str]]) -> None:
    assert refused(matrix) == expected


def test_a_matrix_has_an_end() -> None:
    many = ", ".join(map(str, range(1, 102)))
    assert refused(f"  train.seed: [{many}]\n  train.epochs: [{many}]\n") == [("E0401", "s.yaml:7:1")]


def test_what_all_builds_have_wrong_is_said_once() -> None:
    found = refused("  train.seed: [1, 2, 3]\n", HEAD.replace("batch_tokens: 1024", "batch_tokens: 64"))
    assert found == [("E0203", "s.yaml:6:57")]


NAMES = ["draft.layers=1,train.optimizer.learning_rate=0.001", "draft.layers=2,train.optimizer.learning_rate=0.0001"]


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ((), 2), (("draft.layers=1",), 1), (("layers=2",), 1), (("learning_rate=1e-4",), 1),
        (("learning_rate=1e-3",), 1),
        (("layers=1", "learning_rate=0.001"), 1), ((NAMES[0],), 1),
    ],
)  # fmt: skip
def test_builds_are_chosen_by_their_values(only: tuple[str, ...], count: int) -> None:
    assert len(choose(NAMES, only)) == count


@pytest.mark.parametrize("only", [("layers=3",), ("layers",), ("ayers=1",), ("layers=1", "learning_rate=1e-4")])
def test_a_value_that_no_build_has_is_an_error_of_usage(only: tuple[str, ...]) -> None:
    with pytest.raises(SpeccError) as caught:
        choose(NAMES, only)
    assert caught.value.code == Exit.USAGE
    assert "draft.layers=2" in (caught.value.hint or "")


def test_one_build_is_meant_where_only_one_will_do() -> None:
    assert choose_one([""], ()) == ""
    assert choose_one(NAMES, ("layers=2",)) == NAMES[1]
    with pytest.raises(SpeccError, match="has 2 builds, and one is meant"):
        choose_one(NAMES, ())
    with pytest.raises(SpeccError, match="no matrix to choose from"):
        choose_one([""], ("layers=1",))
