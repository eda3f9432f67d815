"""`specc show`: an artifact's page, by id and by spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safetensor import one_tensor
from specc.core.cli import main
from specc.core.contracts import Input, Manifest, StageJob
from specc.core.errors import Exit
from specc.core.store import Store

METRICS = {
    "best_epoch": 1,
    "initial": {"epoch": 0, "loss": None, "validation_loss": 5.5, "simulated": {"mean_acceptance_length": 1.0}},
    "epochs": [
        {"epoch": 1, "loss": 3.25, "validation_loss": 3.0, "simulated": {"mean_acceptance_length": 1.75}},
        {"epoch": 2, "loss": 2.5, "validation_loss": 3.125, "simulated": {"mean_acceptance_length": 1.625}},
    ],
}
EVALUATION = {
    "served": {"drafts": 100, "accepted": 90, "accepted_per_position": [60, 20, 10], "mean_acceptance_length": 1.9},
    "untrained": {"drafts": 190, "accepted": 0, "accepted_per_position": [0, 0, 0], "mean_acceptance_length": 1.0},
    "simulated": {"drafts": 100, "accepted": 92, "accepted_per_position": [61, 21, 10], "mean_acceptance_length": 1.92},
    "lossless": {"fp32": {"prompts": 4, "identical": 4}},
}


@pytest.fixture
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SPECC_STORE", str(quick_path / "store"))
    return Store(quick_path / "store")


def put(
    store: Store,
    stage: str,
    files: dict[str, bytes],
    inputs: dict[str, Manifest] | None = None,
    key: str = "",
    **params: Any,
) -> Manifest:
    key = (key or stage).ljust(64, "0")
    made_of = {slot: Input(path="", digest=item.digest) for slot, item in (inputs or {}).items()}
    job = StageJob(stage=stage, version=1, key=key, params=params, facets={"isa": "amx", "threads": 2}, files={},
                   inputs=made_of, output="", work="", units="")  # fmt: skip
    output = store.begin(stage, key)
    for name, data in files.items():
        (output / name).write_bytes(data)
    return store.seal(job, "tiny", output, {"seconds": 62.0, "started": "2026-01-02T03:04:05Z"})


@pytest.fixture
def built(store: Store) -> dict[str, Manifest]:
    """The artifacts of a small build."""
    verifier = put(store, "verifier", {"config.json": b"{}"})
    tokens = put(store, "tokens", {"index.json": b"[]"}, {"verifier": verifier})
    trained = {"metrics.json": json.dumps(METRICS).encode(), "model.safetensors": one_tensor()}
    train = {"optimizer": {"learning_rate": 1e-3}, "epochs": 2}
    draft = put(store, "draft", trained, {"tokens": tokens, "verifier": verifier}, train=train)
    checkpoint = put(store, "checkpoint", {"model.safetensors": one_tensor()}, {"draft": draft, "verifier": verifier},
                     name="tiny", stages={"draft": {"key": draft.key}})  # fmt: skip
    evaluation = put(
        store, "evaluation", {"evaluation.json": json.dumps(EVALUATION).encode()}, {"checkpoint": checkpoint}
    )
    return {item.stage: item for item in (verifier, tokens, draft, checkpoint, evaluation)}


def test_a_drafts_page(built: dict[str, Manifest], store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    draft, tokens, verifier = (built[name].digest for name in ("draft", "tokens", "verifier"))
    assert main(["show", draft[:8]]) == Exit.OK
    assert (
        capsys.readouterr().out
        == f"""\
draft sha256:{draft}
  folder    {store.path(draft)}
  size      {built["draft"].size} B in 2 files
  key       draft{"0" * 59}
  made      2026-01-02T03:04:05Z, in 62 s
  numerics  isa=amx threads=2

parameters
  train.epochs                   2
  train.optimizer.learning_rate  0.001

made of
  ├─ tokens {tokens[:12]}  2 B
  │  └─ verifier {verifier[:12]}  2 B
  └─ verifier {verifier[:12]}  2 B

measured
  epoch  loss   validation  acceptance length (simulated)
  0      -      5.500       1.000
  1 *    3.250  3.000       1.750
  2      2.500  3.125       1.625
"""
    )


def test_an_evaluations_page(built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", built["evaluation"].digest]) == Exit.OK
    out = capsys.readouterr().out
    assert (
        out[out.index("measured") :]
        == """\
measured
             drafts  accepted  mean length  accepted by position
  served     100     90        1.900        0.60 0.20 0.10
  untrained  190     0         1.000        0.00 0.00 0.00
  simulated  100     92        1.920        0.61 0.21 0.10
  greedy output in fp32: 4 of 4 prompts identical
"""
    )


def test_a_checkpoints_page_says_how_to_serve_it(
    built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    digest = built["checkpoint"].digest
    assert main(["show", digest]) == Exit.OK
    out = capsys.readouterr().out
    assert out.endswith(f"serve it\n  specc serve {digest[:12]}\n")
    assert "stages" not in out


def test_an_ancestor_is_shown_as_this_build_made_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The same tokens came from two verifiers, the second time in the build at hand."""
    first, second = (put(store, "verifier", {"config.json": data}, key=data.hex()) for data in (b"1", b"2"))
    put(store, "tokens", {"index.json": b"[]"}, {"verifier": first}, key="first")
    tokens = put(store, "tokens", {"index.json": b"[]"}, {"verifier": second}, key="second")
    checkpoint = put(store, "checkpoint", {"a": b""}, {"tokens": tokens}, stages={"tokens": {"key": tokens.key}})
    main(["show", checkpoint.digest])
    out = capsys.readouterr().out
    assert second.digest[:12] in out
    assert first.digest[:12] not in out


def test_an_ancestor_that_is_gone_is_said_to_be(
    built: dict[str, Manifest], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.remove(built["tokens"].digest)
    main(["show", built["draft"].digest])
    assert f"├─ tokens {built['tokens'].digest[:12]} (no longer in the store)" in capsys.readouterr().out


def test_the_page_as_data(built: dict[str, Manifest], capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", built["draft"].digest, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == f"sha256:{built['draft'].digest}"
    assert found["measured"] == METRICS
    assert found["inputs"] == dict(built["draft"].inputs)
    assert found["record"]["seconds"] == 62.0
    assert [file["path"] for file in found["files"]] == ["metrics.json", "model.safetensors"]


def test_a_spec_shows_its_last_checkpoint_and_evaluation(
    built: dict[str, Manifest], store: Store, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = root / "specs/quickstart.yaml"
    assert main(["show", str(spec)]) == Exit.INPUT
    assert "was never built here" in capsys.readouterr().err
    from specc.core.language import check

    name = check(spec).spec.name
    store.note_last(name, "draft", built["draft"])
    assert main(["show", str(spec)]) == Exit.OK
    assert capsys.readouterr().out.startswith("draft sha256:")
    for stage in ("checkpoint", "evaluation"):
        store.note_last(name, stage, built[stage])
    assert main(["show", str(spec)]) == Exit.OK
    out = capsys.readouterr().out
    assert out.startswith("checkpoint sha256:")
    assert f"specc serve {spec}" in out
    assert "\nevaluation sha256:" in out
    main(["show", str(spec), "--json"])
    assert list(json.loads(capsys.readouterr().out)["artifacts"]) == ["checkpoint", "evaluation"]
    store.remove(built["checkpoint"].digest)
    assert main(["show", str(spec)]) == Exit.OK
    assert "no longer in the store" in capsys.readouterr().out


def test_an_id_that_means_nothing_says_what_to_type(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "deadbeef"]) == Exit.INPUT
    err = capsys.readouterr().err
    assert "no artifact `deadbeef` in the store" in err
    assert "hint: `specc status SPEC`" in err
