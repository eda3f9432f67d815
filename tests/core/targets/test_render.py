"""From templates to texts: nothing undefined, everything quoted, the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compiling import NEEDED, Compiler
from specc.core.targets import TARGETS
from specc.core.targets.render import TEMPLATES, as_json, block, checksums, make_environment

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def test_a_name_that_nothing_stands_for_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "typo.jinja").write_text("{{ projekt }}")
    with pytest.raises(jinja2.UndefinedError):
        make_environment(tmp_path).get_template("typo.jinja").render(project=1)


def test_every_template_is_used_and_every_row_has_its_templates() -> None:
    rows = {f"{row.name}/{name}.jinja" for row in TARGETS.values()
            for name in [*row.files.values(), *row.per_stage.values()]}  # fmt: skip
    there = {path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*.jinja")}
    assert rows == {path for path in there if "/" in path}
    included = "".join(path.read_text() for path in TEMPLATES.rglob("*.jinja"))
    assert all(f'{{% include "{path}" %}}' in included for path in there if "/" not in path)
    assert all(row.start in row.files for row in TARGETS.values())


def test_the_templates_are_in_the_wheel(root: Path) -> None:
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert any(TEMPLATES.is_relative_to(root / folder) for folder in wheel["only-include"])
    assert not wheel.get("exclude")
    command = ["git", "check-ignore", *map(str, TEMPLATES.rglob("*.jinja"))]
    ignored = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ignored.stdout == "", "hatchling leaves out what git ignores"


@pytest.mark.parametrize("target", TARGETS)
def test_compiled_twice_the_bytes_are_the_same_and_name_nothing_of_this_machine(hostile: Compiler, target: str) -> None:
    one, two = hostile(target, out="one"), hostile(target, out="two")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for path in files:
        data = (one / path).read_bytes()
        assert data == (two / path).read_bytes()
        assert str(hostile.project.folder).encode() not in data
        assert os.uname().nodename.encode() not in data
        if path.suffix in (".sh", ".sbatch", ".yaml") and path.parts[0] != "project":
            head = data.decode().split("\n#\n")[0]
            assert "# Written by specc " in head
            assert all(
                digest in head
                for digest in (
                    json.loads((one / "compiled.json").read_text())[key]["sha256"] for key in ("spec", "lock")
                )
            )
        if path.name != "compiled.json":
            assert json.loads((one / "compiled.json").read_text())["files"][path.as_posix()]


@given(TEXTS)
def test_a_block_is_the_text_in_yaml_and_in_what_it_stands_in(text: str) -> None:
    assert yaml.safe_load(f"data:\n  text: {block(text, 4)}\n  more: 1\n") == {"data": {"text": text, "more": 1}}
    assert yaml.safe_load(f"{{text: {as_json(text)}}}") == {"text": text}


def test_a_text_that_a_person_can_read_stays_one() -> None:
    for text in ("one\ntwo\n", "one\n\n  two", "  one\n\n\n", "# é\nname: x\n"):
        assert block(text, 4).startswith("|2")
    assert block("one\r\ntwo", 4) == '"one\\r\\ntwo"'


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    names = ["plain", "back\\slash", "new\nline", "re\rturn", "sp ace", "-dash"]
    for name in names:
        (tmp_path / name).write_text(name)
    command = ["sha256sum", "--", *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    digests = [line.removeprefix("\\").split()[0] for line in done.stdout.split("\n")[:-1]]
    assert checksums(dict(zip(names, digests, strict=True))) == done.stdout


def test_every_target_is_needed_by_these_tests() -> None:
    assert set(NEEDED) == set(TARGETS)
