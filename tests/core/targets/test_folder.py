"""The folder that is written: whole or not at all, and never over what somebody else put there."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from compiling import Compiler
from specc.core.errors import SpeccError
from specc.core.targets import write_folder

HEAD = {"target": "shell"}


def write(out: Path, **files: str) -> dict[str, str]:
    """Write texts to a folder."""
    return write_folder(out, {name.replace("_", "/"): text.encode() for name, text in files.items()}, HEAD, {})


def names(folder: Path) -> list[str]:
    """Return everything below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_an_earlier_compile_is_replaced_and_what_it_had_more_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "out", one="1", jobs_two="2")
    found = write(tmp_path / "out", one="3")
    assert names(tmp_path) == ["out", "out/compiled.json", "out/one"]
    assert (tmp_path / "out/one").read_text() == "3"
    assert found == {name: sha256((tmp_path / "out" / name).read_bytes()).hexdigest() for name in found}
    assert json.loads((tmp_path / "out/compiled.json").read_text()) == {**HEAD, "files": {"one": found["one"]}}


def test_an_empty_folder_is_taken_and_so_is_one_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", one="1")
    assert (tmp_path / "real/one").read_text() == "1"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("what", ["a stranger's", "changed", "a link", "no manifest", "garbled", "a pipe"])
def test_what_no_compile_wrote_is_never_lost(tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    write(out, one="1")
    match what:
        case "a stranger's":
            (out / "notes.txt").write_text("mine")
        case "changed":
            (out / "one").write_text("mine")
        case "a link":
            (out / "project").symlink_to(tmp_path)
        case "no manifest":
            (out / "compiled.json").unlink()
        case "garbled":
            (out / "compiled.json").write_text("[]")
        case _:
            os.mkfifo(out / "pipe")
    before = names(tmp_path)
    with pytest.raises(SpeccError) as caught:
        write(out, one="2")
    assert names(tmp_path) == before
    assert "the folder is not empty, and `" in caught.value.message
    assert caught.value.hint == "name another folder, or remove what is in this one"


def test_a_file_and_the_working_directory_are_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpeccError, match="this is a file, not a folder"):
        write(tmp_path / "file", one="1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SpeccError, match="the working directory cannot be replaced"):
        write(Path(), one="1")
    assert names(tmp_path) == ["file", "here"]


def test_what_cannot_be_written_leaves_the_earlier_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(out, one="1")
    before = names(tmp_path)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError(13, "refused", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(SpeccError, match="no permission to write here"):
        write(out, one="2")
    assert names(tmp_path) == before
    assert (out / "one").read_text() == "1"


# With the project's files


def test_the_files_come_with_it_if_asked_for(plain: Compiler) -> None:
    folder = plain("shell", "--with-files")
    for name in ("prompts.jsonl", "tiny/model.safetensors", "tiny.yaml", "tiny.lock.json"):
        assert (folder / "project" / name).read_bytes() == (plain.project.folder / name).read_bytes()
    without = plain("shell", out="without")
    assert names(without / "project") == ["tiny.lock.json", "tiny.yaml"]
    assert (without / "files.sha256").read_bytes() == (folder / "files.sha256").read_bytes()


def test_a_file_that_is_gone_or_another_by_now_is_not_copied(plain: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain.project.folder / "prompts.jsonl").unlink()
    said = plain.fails("--target", "shell", "--with-files")
    assert "there is no file `prompts.jsonl` to be copied" in said
    assert "hint: leave out `--with-files`" in said
    plain("shell")


def test_a_spec_that_names_files_above_its_folder_keeps_the_way_to_them(plain: Compiler) -> None:
    folder = plain.project.folder
    (folder / "specs/mine").mkdir(parents=True)
    text = (folder / "tiny.yaml").read_text()
    (folder / "specs/mine/tiny.yaml").write_text(
        text.replace("./tiny", "../../tiny").replace("prompts.jsonl", "../rows.jsonl")
    )
    (folder / "prompts.jsonl").rename(folder / "specs/rows.jsonl")
    plain.project.run("lock", "specs/mine/tiny.yaml")
    out = Compiler(plain.project, "specs/mine/tiny.yaml")("shell", "--with-files")
    top = {name.split("/")[0] for name in names(out / "project")}
    assert top == {"specs", "tiny"}
    assert (out / "project/specs/rows.jsonl").is_file()
    assert "./specs/mine/tiny.yaml\n" in (out / "build.sh").read_text()
    plain.project.run("status", "out/project/specs/mine/tiny.yaml")
    plain.project.run("build", "--frozen", "--stage", "vocabulary", "out/project/specs/mine/tiny.yaml")
