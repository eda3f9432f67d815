"""`extends`: what is merged, where values are said to stand, where paths lead, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from specc.core.errors import Position, SpeccError
from specc.core.language import Checked, check
from specc.core.language.document import Document
from specc.core.language.extends import LONGEST

BASE = """\
version: 1
name: base
verifier: {model: ./tiny}
draft:
  algorithm: eagle3
  layers: 2
  ttt: {steps: 4}
data:
  sources:
    - file: prompts/a.jsonl
    - file: prompts/b.jsonl
train:
  epochs: 7
  optimizer: {name: muon, momentum: 0.9, learning_rate: 2e-3}
runtime: {store: ../store}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `common` with a spec, and `mine` beside it for one that goes on from it."""
    (tmp_path / "common").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "common/base.yaml").write_text(BASE)
    return tmp_path


def checked(folder: Path, text: str, base: str = "../common/base.yaml") -> Checked:
    spec = folder / "mine/spec.yaml"
    spec.write_text(f"extends: {base}\n{text}")
    (only,) = check(spec)
    return only


def refused(folder: Path, text: str, base: str = "../common/base.yaml") -> list[SpeccError]:
    with pytest.raises(SpeccError) as caught:
        checked(folder, text, base)
    return caught.value.errors


def test_mappings_are_merged_and_all_else_is_replaced(folder: Path) -> None:
    values = checked(folder, "name: mine\ndraft: {layers: 1}\ndata: {sources: [{file: c.jsonl}]}\n").spec.values()
    assert values["name"] == "mine"
    assert (values["draft"]["layers"], values["draft"]["ttt"]["steps"]) == (1, 4)
    assert [source["file"] for source in values["data"]["sources"]] == ["c.jsonl"]
    assert values["train"]["epochs"] == 7


def test_values_stand_where_they_are_written(folder: Path) -> None:
    document = checked(folder, "draft: {layers: 1}\n").document
    assert document.position(("draft", "layers")) == Position(str(folder / "mine/spec.yaml"), 2, 17, 1)
    assert document.position(("draft", "ttt", "steps")) == Position(str(folder / "common/base.yaml"), 7, 16, 1)
    assert "train.epochs" in document.written()
    assert "extends" not in document.data


def test_paths_are_relative_to_the_file_they_stand_in(folder: Path) -> None:
    values = checked(folder, "evaluate: {prompts: [{file: held-out.jsonl}]}\n").spec.values()
    assert values["verifier"]["model"] == "../common/tiny"
    assert [source["file"] for source in values["data"]["sources"]] == [
        "../common/prompts/a.jsonl", "../common/prompts/b.jsonl"]  # fmt: skip
    assert values["evaluate"]["prompts"][0]["file"] == "held-out.jsonl"
    assert values["runtime"]["store"] == "../store"


def test_a_hub_id_is_no_path_unless_there_is_such_a_folder(folder: Path) -> None:
    base = folder / "common/base.yaml"
    base.write_text(BASE.replace("./tiny", "org/model"))
    assert checked(folder, "").spec.verifier.model == "org/model"
    (folder / "common/org/model").mkdir(parents=True)
    assert checked(folder, "").spec.verifier.model == "../common/org/model"
    (folder / "common/below").mkdir()
    (folder / "spec.yaml").write_text("extends: common/base.yaml\n")
    assert check(folder / "spec.yaml")[0].spec.verifier.model == "./common/org/model", "not a hub id of this name"


def test_of_another_member_of_a_union_nothing_is_kept_that_is_its_alone(folder: Path) -> None:
    optimizer = checked(folder, "train: {optimizer: {name: adamw}}\n").spec.values()["train"]["optimizer"]
    assert (optimizer["name"], optimizer["learning_rate"]) == ("adamw", 2e-3)
    assert "momentum" not in optimizer
    same = checked(folder, "train: {optimizer: {learning_rate: 1e-3}}\n").spec.values()["train"]["optimizer"]
    assert (same["name"], same["momentum"], same["learning_rate"]) == ("muon", 0.9, 1e-3)


def test_a_misspelt_field_of_the_base_is_no_union_s(folder: Path) -> None:
    base = folder / "common/base.yaml"
    base.write_text(BASE.replace("momentum", "momentun"))
    (error,) = refused(folder, "train: {optimizer: {name: adamw}}\n")
    assert error.id == "E0101"
    assert str(error.where) == f"{base}:14:27"


def test_an_error_names_the_file_and_line_it_comes_from(folder: Path) -> None:
    base = folder / "common/base.yaml"
    base.write_text(BASE.replace("epochs: 7", "epochs: seven"))
    errors = refused(folder, "draft: {layers: 99}\n")
    assert [str(error.where) for error in errors] == [f"{folder / 'mine/spec.yaml'}:2:17", f"{base}:13:11"]
    assert errors[1].excerpt == "  epochs: seven"


def test_what_is_missing_is_missing_from_the_whole(folder: Path) -> None:
    (folder / "common/base.yaml").write_text("version: 1\nname: base\n")
    assert {error.message for error in refused(folder, "verifier: {model: ./tiny}\n")} == {
        "`draft` is missing", "`data` is missing"}  # fmt: skip


def test_a_spec_is_held_to_the_schema_by_itself_as_an_editor_does(folder: Path) -> None:
    """The base says `muon`, so that the whole would be valid: an editor that sees this file alone cannot know."""
    (error,) = refused(folder, "train: {optimizer: {momentum: 0.8}}\n")
    assert error.id == "E0106"
    assert checked(folder, "train: {optimizer: {name: muon, momentum: 0.8}}\n").spec.values()["train"]["epochs"] == 7


def test_specs_go_on_from_specs_that_do_so_themselves(folder: Path) -> None:
    (folder / "common/middle.yaml").write_text("extends: base.yaml\nname: middle\ntrain: {epochs: 8}\n")
    found = checked(folder, "train: {batch_tokens: 4096}\n", "../common/middle.yaml")
    values = found.spec.values()
    assert (values["name"], values["train"]["epochs"], values["train"]["batch_tokens"]) == ("middle", 8, 4096)
    assert found.document.position(("train", "optimizer", "name")).file == str(folder / "common/base.yaml")


def test_circles_end(folder: Path) -> None:
    (folder / "common/base.yaml").write_text("extends: ../mine/spec.yaml\n")
    (error,) = refused(folder, "")
    assert (error.id, str(error.where)) == ("E0009", f"{folder / 'common/base.yaml'}:1:10")
    (error,) = refused(folder, "", "spec.yaml")
    assert (error.id, error.message) == ("E0009", "this goes round in a circle")


def test_a_chain_has_an_end(folder: Path) -> None:
    for number in range(LONGEST + 1):
        (folder / f"mine/{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (error,) = refused(folder, "", "0.yaml")
    assert (error.id, error.message) == ("E0009", "a spec goes on from at most 15 others")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("nothing.yaml", "E0009"), ("../common", "E0009"), ("package:nobody/has.yaml", "E0009"),
        ("package:click/no-such-file.yaml", "E0009"), ("/etc/hostname", "E0215"), ("C:/base.yaml", "E0215"),
        ("[a, b]", "E0102"), ("''", "E0102"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_at_its_line(folder: Path, base: str, expected: str) -> None:
    errors = refused(folder, "", base)
    assert errors[0].id == expected
    assert isinstance(errors[0].where, Position)
    assert errors[0].where.line == 1


def test_a_base_of_an_installed_package_and_the_files_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder / "site"
    (site / "acme/specs").mkdir(parents=True)
    (site / "acme/specs/base.yaml").write_text(BASE)
    (site / "acme-1.0.dist-info").mkdir()
    (site / "acme-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (site / "acme-1.0.dist-info/RECORD").write_text("acme/specs/base.yaml,,\nacme/specs/prompts/a.jsonl,,\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    found = checked(folder, "", "package:acme/specs/base.yaml")
    values = found.spec.values()
    assert values["verifier"]["model"] == "package:acme/specs/tiny"
    assert values["data"]["sources"][0]["file"] == "package:acme/specs/prompts/a.jsonl"
    assert str(found.document.position(("train", "epochs"))) == "package:acme/specs/base.yaml:13:11"


def test_a_document_that_goes_on_from_nothing_is_left_as_it_is(folder: Path) -> None:
    path = folder / "common/base.yaml"
    assert check(path)[0].document.data == Document.read(path).data
