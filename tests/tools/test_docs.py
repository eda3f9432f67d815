"""The pages are built strictly, the generated ones are what specc says of itself, and what they show runs."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from specc.core.cli.main import COMMANDS, group
from specc.core.language.explanations import pages
from specc.core.language.schema import build_schema, fields
from specc.core.lock.schema import build_lock_schema


@pytest.fixture(scope="module")
def tool(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "tools" / "docs.py"))


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / "docs.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(folder / "mkdocs.yml")]
    return subprocess.run([*command, "--site-dir", str(site)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(root, folder)
    assert done.returncode == 0, done.stderr
    return folder


def headings(root: Path, page: str) -> list[str]:
    text = re.sub(r"^(`{3,}).*?^\1$", "", (root / "docs/reference" / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def test_the_generated_pages_are_what_specc_says_of_itself(root: Path) -> None:
    done = run(root, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_stale_page_is_named(root: Path, tmp_path: Path) -> None:
    assert run(root, "--to", str(tmp_path)).returncode == 0
    page = tmp_path / "cli.md"
    page.write_text(page.read_text() + "one line more\n")
    done = run(root, "--to", str(tmp_path), "--check")
    assert done.returncode == 1
    assert done.stderr == (f"error: {page}: this page differs from what specc says of itself\n\n"
                           "hint: `make docs` writes it anew\n")  # fmt: skip


def test_every_field_error_and_command_has_a_heading_of_its_own(root: Path, tool: dict[str, Any]) -> None:
    expected = {
        "language.md": {f"`{path}`" for path in fields(build_schema())},
        "errors.md": set(pages()),
        "cli.md": {f"`specc {name}`" for name in COMMANDS},
        "lock.md": {"`locked`", "`locked.values.verifier`", "`locked.values.verifier.config`"},
    }
    anchor: Callable[[str], str] = tool["anchor"]
    for page, wanted in expected.items():
        found = headings(root, page)
        # A field of several members of a union has a heading for each, which names the member.
        assert wanted <= {heading.partition(" (")[0] for heading in found}, page
        assert len({anchor(heading) for heading in found}) == len(found), page


def test_the_lock_shows_what_a_lock_has_and_a_spec_has_not(root: Path) -> None:
    shown: set[str] = set()
    parent = ""
    for line in (root / "docs/reference/lock.md").read_text().splitlines():
        if heading := re.match(r"## `(.*)`", line):
            parent = f"{heading[1]}."
        elif item := re.match(r"- \[?`(.*?)`", line):
            shown.add(parent + item[1])
    prefix = "locked.values."
    written = {prefix + path for path in fields(build_schema())}
    extra = {path for path in fields(build_lock_schema()) if path not in written}
    assert extra <= shown
    assert not shown & {prefix + path for path in ("name", "train.epochs", "verifier.model")}


def test_members_of_a_tagged_union_have_their_own_fields_apart(tool: dict[str, Any]) -> None:
    def member(name: str, **properties: Any) -> dict[str, Any]:
        kind = {"kind": {"const": name}}
        return {"if": {"properties": kind}, "then": {"description": "", "properties": {**kind, **properties}}}

    size, other = {"description": "Size."}, {"description": "Another size."}
    union = {"properties": {"kind": {"enum": ["a", "b"]}},
             "allOf": [member("a", both=size, mine=size, same=size), member("b", both=size, same=other)]}  # fmt: skip
    found = list(tool["walk"](union, "u"))
    assert [(field.path, field.member) for field in found] == [
        ("u.kind", None), ("u.both", None), ("u.mine", "kind: a"), ("u.same", "kind: a"), ("u.same", "kind: b"),
    ]  # fmt: skip
    assert tool["headings"](found)[-2:] == ["`u.same` (kind: a)", "`u.same` (kind: b)"]


def test_prose_becomes_markdown_without_a_meaning_of_its_own(tool: dict[str, Any]) -> None:
    assert tool["escape"]("KL(a || b) of `x || y_z`, <b>, *_[1]#") == r"KL(a \|\| b) of `x || y_z`, \<b\>, \*\_\[1\]\#"


def test_what_is_built_asks_no_other_host(site: Path) -> None:
    every = list(site.rglob("*.html"))
    assert len(every) > 15
    for page in every:
        asked = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"', page.read_text())
        assert not asked, page


def test_a_link_that_leads_nowhere_is_an_error(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "docs", tmp_path / "docs")
    shutil.copy(root / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs/tutorial.md").open("a") as page:
        page.write("\n[one](no-such-page.md) [two](how-to/sweep.md#no-such-part)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr
    assert "#no-such-part" in done.stderr


def test_the_readme_leads_to_parts_that_are_there(root: Path, site: Path) -> None:
    links = re.findall(r"\]\(docs/([^)]+)\.md(?:#([^)]+))?\)", (root / "README.md").read_text())
    assert len(links) > 5
    for page, part in links:
        built = (site / f"{page}.html").read_text()
        assert not part or f'id="{part}"' in built, (page, part)


def test_every_command_that_is_shown_can_be_typed(root: Path) -> None:
    """The words after `$ specc` are arguments and options that the command takes; nothing is run."""
    parent = click.Context(group, info_name="specc")
    lines = [
        line for page in (root / "docs").rglob("*.md") for line in re.findall(r"^\$ specc .*", page.read_text(), re.M)
    ]
    assert len(lines) > 20
    for line in lines:
        _, _, name, *arguments = shlex.split(re.sub(r" > \S+", "", line), comments=True)
        command = group.get_command(parent, name)
        assert command is not None, line
        command.make_context(name, arguments, parent=parent)


@pytest.mark.parametrize("page", ["share-a-base.md", "sweep.md"])
def test_the_specs_of_a_page_pass_check(root: Path, tmp_path: Path, page: str) -> None:
    """Blocks that begin with a file's name are written there; an error that is shown is what a mistake gives."""
    text = (root / "docs/how-to" / page).read_text()
    for name in ("everyday", "held-out"):
        (tmp_path / "prompts").mkdir(exist_ok=True)
        shutil.copy(root / f"specs/prompts/{name}.jsonl", tmp_path / "prompts")
    files = {match[1]: block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
             if (match := re.match(r"# (\S+\.yaml)\n", block))}  # fmt: skip
    for name, block in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(block)
    *_, spec = files
    check = [Path(sys.executable).parent / "specc", "check", spec]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for shown in re.findall(r"```text\n(error: .*?)```", text, re.DOTALL):
        (tmp_path / "base.yaml").write_text(files["base.yaml"].replace("muon", "moun"))
        done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (1, shown)


def test_the_tutorial_shows_what_explain_says(root: Path, tmp_path: Path) -> None:
    text = (root / "docs/tutorial.md").read_text()
    (shown,) = re.findall(r"```text\n(train\..*?)```", text, re.DOTALL)
    commands = [
        line for line in re.findall(r"^\$ (specc .*)", text, re.MULTILINE) if "init" in line or "learning" in line
    ]
    for line in commands:
        _, *arguments = shlex.split(line, comments=True)
        done = subprocess.run([Path(sys.executable).parent / "specc", *arguments], cwd=tmp_path, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout == shown
