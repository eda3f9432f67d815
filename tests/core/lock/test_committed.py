"""The locks beside the specs that specc ships: current, and good for every class of machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specc.core.cli import main
from specc.core.lock import CLASSES

ROOT = Path(__file__).resolve().parents[3]
SPECS = sorted((ROOT / "specs").glob("*.yaml"))


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", CLASSES)
def test_the_lock_is_current_and_plans_for_every_class(
    spec: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "store"))
    assert main(["lock", "--check", str(spec)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["plan", "--class", name, "--json", str(spec)]) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert plan["class"].startswith(f"{name}-t")
    assert {"verifier", "draft", "checkpoint", "evaluation"} <= {stage["stage"] for stage in plan["stages"]}
    assert err == ""
