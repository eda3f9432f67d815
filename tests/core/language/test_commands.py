"""`specc check`, `specc schema` and `specc init`, as they are called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from specc.core.cli import main
from specc.core.language import Document, check
from specc.core.language.paths import named_files

Capture = pytest.CaptureFixture[str]
EXAMPLES = sorted(
    (path.stem for path in (Path(__file__).resolve().parents[3] / "specs").glob("*.yaml")),
    key=lambda name: (name != "quickstart", name),
)


def test_check_says_ok_on_stderr_and_data_on_stdout(root: Path, capsys: Capture) -> None:
    path = str(root / "tests" / "specs" / "good" / "minimal.yaml")
    assert main(["check", path]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"ok: {path}\n")
    assert main(["check", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"specs": [{"file": path, "name": "my-speculator"}]}


def test_check_shows_the_errors_of_all_files(root: Path, capsys: Capture, tmp_path: Path) -> None:
    specs = root / "tests" / "specs"
    paths = [specs / "bad" / "unknown-field.yaml", specs / "good" / "minimal.yaml", specs / "bad" / "yaml-tab.yaml",
             tmp_path / "none.yaml"]  # fmt: skip
    assert main(["check", *map(str, paths)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"ok: {paths[1]}" in err
    assert err.count("error: ") == 3
    assert all(str(paths[index]) in err for index in (0, 2, 3))
    assert main(["check", "--json", *map(str, paths)]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [error["id"] for error in errors] == ["E0101", "E0002", "E0001"]
    assert errors[0]["where"] == {"file": str(paths[0]), "line": 9, "column": 3, "length": 12}


def test_check_as_a_process(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "specc.core.cli", "check", "specs/quickstart.yaml"]
        if (root / "packages/core/src/specc/core/cli/__main__.py").exists()
        else [Path(sys.executable).with_name("specc"), "check", "specs/quickstart.yaml"],
        cwd=root, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "ok: specs/quickstart.yaml\n")


def test_schema_prints_what_is_published(root: Path, capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == (root / "schema" / "speculator.v1.schema.json").read_text()


def test_schema_check(root: Path, capsys: Capture, tmp_path: Path) -> None:
    assert main(["schema", "--check"]) == 0
    assert main(["schema", "--check", str(root / "schema" / "speculator.v1.schema.json")]) == 0
    stale = tmp_path / "stale.json"
    stale.write_text("{}\n")
    capsys.readouterr()
    assert main(["schema", "--check", str(stale)]) == 1
    assert f"hint: `specc schema > {stale}` writes it anew" in capsys.readouterr().err
    assert main(["schema", "--check", str(tmp_path / "none.json")]) == 1


def test_schema_field_is_a_page(capsys: Capture) -> None:
    assert main(["schema", "--field", "train.schedule.warmup"]) == 0
    assert capsys.readouterr().out == (
        "train.schedule.warmup\n"
        "  Length of the linear warm-up: a share of all steps if below 1, otherwise a number of steps.\n"
        "\n"
        "  takes    a number of at least 0 and below 1 or a whole number of at least 1\n"
        "  default  0.01\n"
    )
    assert main(["schema", "--field", "train.optimizer"]) == 0
    assert "learning_rate  learning rate after the warm-up" in capsys.readouterr().out
    assert main(["schema", "--field", "learning_rate"]) == 1
    assert "did you mean `train.optimizer.learning_rate`?" in capsys.readouterr().err
    assert main(["schema", "--field", "train.seed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] == 42


@pytest.mark.parametrize("name", ["my_spec", "2024", "null", "a b!", "_"])
def test_init_writes_a_spec_that_passes(tmp_path: Path, capsys: Capture, name: str) -> None:
    path = tmp_path / f"{name}.yaml"
    assert main(["init", str(path)]) == 0
    assert sorted(item.relative_to(tmp_path).as_posix() for item in tmp_path.rglob("*") if item.is_file()) == sorted(
        [path.name, "prompts/train.jsonl", "speculator.v1.schema.json"]
    )
    first, second = path.read_text().splitlines()[:2]
    assert first == "# yaml-language-server: $schema=speculator.v1.schema.json"
    assert second == "# $schema: speculator.v1.schema.json"
    (checked,) = check(path, files=True)
    assert checked.spec.draft.model_dump()["algorithm"] == "eagle3"
    assert f"wrote {path}" in capsys.readouterr().err


def test_init_never_overwrites(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "s.yaml"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train.jsonl").write_text("mine\n")
    assert main(["init", str(path)]) == 0
    assert (tmp_path / "prompts" / "train.jsonl").read_text() == "mine\n"
    before = path.read_text()
    assert main(["init", str(path)]) == 1
    assert "never overwrites" in capsys.readouterr().err
    assert path.read_text() == before


def test_init_finds_the_schema_of_a_checkout(root: Path, tmp_path: Path) -> None:
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / "speculator.v1.schema.json").write_text("{}")
    path = tmp_path / "deep" / "er" / "s.yaml"
    assert main(["init", str(path)]) == 0
    assert path.read_text().startswith("# yaml-language-server: $schema=../../schema/speculator.v1.schema.json\n")
    assert not (path.parent / "speculator.v1.schema.json").exists()


def test_init_from_an_example_copies_what_it_names(root: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["init", "--from", "quickstart", str(path), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written[0] == str(path)
    assert check(path, files=True)[0].spec.values() == check(root / "specs" / "quickstart.yaml")[0].spec.values()
    assert path.read_text().count("$schema") == 2
    assert main(["init", "--from", "quickstrat", str(tmp_path / "other.yaml")]) == 1
    assert "`quickstart`" in capsys.readouterr().err


def test_init_lists_the_examples(root: Path, capsys: Capture) -> None:
    assert main(["init", "--from"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == EXAMPLES
    assert " ".join(out.split()).startswith(
        "quickstart A speculator for SmolLM2-135M-Instruct, small enough for a laptop"
    )
    assert err == "\nhint: `specc init --from quickstart my-speculator.yaml` copies one\n"
    assert main(["init", "--json", "--from"]) == 0
    listed = json.loads(capsys.readouterr().out)["examples"]
    assert [item["name"] for item in listed] == EXAMPLES
    assert all(item["about"] and not item["about"].endswith(".") for item in listed)
    assert main(["init", "mine.yaml", "--from"]) == 0
    assert "`specc init --from quickstart mine.yaml`" in capsys.readouterr().err


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_that_is_listed_passes_where_it_is_copied_to(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["init", "--from", name, str(path)]) == 0
    assert main(["check", str(path)]) == 0


def test_init_without_a_name_says_how_to_give_one(capsys: Capture) -> None:
    assert main(["init"]) == 2
    assert capsys.readouterr().err == (
        "error: the spec to write has no name\n\nhint: `specc init my-speculator.yaml` writes one\n"
    )
    assert main(["init", "--from", "quickstart"]) == 2
    assert "`specc init --from quickstart my-speculator.yaml`" in capsys.readouterr().err


def test_a_wheel_ships_the_examples_and_what_they_name(root: Path) -> None:
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["specs"] == "specc/core/cli/examples"
    specs = root / "specs"
    for name in EXAMPLES:
        for file in named_files(Document.read(specs / f"{name}.yaml")):
            assert (specs / file).resolve().is_relative_to(specs), f"{name} names {file}, which a wheel has not"
