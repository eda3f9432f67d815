"""`specc doctor` and `specc logs`: this machine, and what a stage printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specc.core.cli import doctor, main
from specc.core.errors import Exit

SPEC = Path(__file__).parents[3] / "specs/quickstart.yaml"


@pytest.fixture(autouse=True)
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECC_STORE", str(quick_path))
    return quick_path


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code = main(["doctor", "--json", *arguments])
    return code, {fact["what"]: fact for fact in json.loads(capsys.readouterr().out)["facts"]}


def test_what_is_lacking_is_said_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {"deepspeed": None, "safetensors": "0.0.1"}

    def installed(pins: dict[str, str]) -> dict[str, str | None]:
        return {name: versions.get(name, pin) for name, pin in pins.items()}

    monkeypatch.setattr(doctor, "installed", installed)
    code, found = facts(capsys)
    assert code == Exit.INPUT
    assert {name for name, fact in found.items() if fact["state"] == "lack"} == {"deepspeed", "safetensors"}
    assert found["deepspeed"]["text"].startswith("none is installed, and the pinned version is ")
    assert "pip install 'specc[" in found["safetensors"]["hint"]


def test_a_spec_adds_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    monkeypatch.setattr(doctor, "installed", dict)
    monkeypatch.setattr(doctor, "_cores", lambda: 1)
    code, found = facts(capsys, str(SPEC))
    assert code == Exit.OK
    assert found["threads"]["state"] == "note"
    assert found["threads"]["text"] == "2, on 1 cores"
    # 960 rows of 512 tokens at most, 4 layers of 576 bf16 numbers each.
    assert (
        f"for {store}; the hidden states take at most {960 * 512 * 4 * 576 * 2 / 1e9:.1f} GB" in found["disk"]["text"]
    )


def test_a_wrong_spec_is_the_specs_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("version: 1\n")
    assert main(["doctor", str(tmp_path / "bad.yaml")]) == Exit.INPUT
    assert "bad.yaml" in capsys.readouterr().err


def test_a_stage_without_a_log_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", str(SPEC), "verifier"]) == Exit.INPUT
    assert "`verifier` has no log: it never ran here" in capsys.readouterr().err


def test_a_log_is_printed_and_its_path_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(SPEC), "--json"]) == Exit.OK
    key = json.loads(capsys.readouterr().out)["stages"][0]["key"]
    (store / "logs").mkdir()
    log = store / "logs" / f"{key}.log"
    log.write_text("an engine's words\n")
    assert main(["logs", str(SPEC), "verifier"]) == Exit.OK
    assert capsys.readouterr().out == "an engine's words\n"
    assert main(["logs", str(SPEC), "verifier", "--path"]) == Exit.OK
    assert capsys.readouterr().out == f"{log}\n"
