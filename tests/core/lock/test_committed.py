"""The locks beside the specs that specc ships: current, and good for every class of machine.

A spec whose verifier is on a hub has none, for no hub was asked: `test_hub_spec.py` locks it against one here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specc.core.cli import main
from specc.core.language import Document
from specc.core.lock import CLASSES
from specc.core.references import is_hub_id

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "specs").glob("*.yaml"))
UNLOCKED = [path for path in SHIPPED if is_hub_id(Document.read(path).data.get("verifier", {}).get("model", ""))]
SPECS = [path for path in SHIPPED if path not in UNLOCKED]


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


def test_only_a_spec_that_needs_a_hub_has_no_lock_and_says_so() -> None:
    assert [path.stem for path in UNLOCKED] == ["qwen3-8b-eagle3"]
    for path in UNLOCKED:
        assert not path.with_suffix(".lock.json").exists(), "a real hub was asked: add it to the specs with locks"
        assert f"specc lock specs/{path.name}" in path.read_text()
        assert f"specs/{path.name}" in (ROOT / "README.md").read_text()
