"""What a benchmark measured, as `specc show` prints it, and two results side by side as `specc diff` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specc.core.cli import main
from specc.core.contracts import Input, Manifest, StageJob
from specc.core.store import Store


def counts(drafts: int, accepted: list[int], reach: float) -> dict[str, Any]:
    length = 1 + sum(accepted) / drafts
    return {"drafts": drafts, "draft_tokens": drafts * len(accepted), "accepted": sum(accepted), "output_tokens": 200,
            "accepted_per_position": accepted, "mean_acceptance_length": length,
            "interval": [length - reach, length + reach]}  # fmt: skip


def benchmark(accepted: int, speedup: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a benchmark of one cell and its speeds."""
    name = {"temperature": 0.0, "speculative_tokens": 2, "batch_size": 4}
    half = counts(50, [accepted // 2, 10], 0.2)
    cell = {**name, **counts(100, [accepted, 20], 0.1), "subsets": {"chat": half, "code": half},
            "lossless": {"identical": 7, "prompts": 8}}  # fmt: skip
    speed = {**name, "tokens_per_second": 100 * speedup, "plain_tokens_per_second": 100.0, "speedup": speedup,
             "interval": [speedup - 0.1, speedup + 0.1], "repeats": 3}  # fmt: skip
    curve = [{"speculative_tokens": 2, "speedup": speedup, "tokens_per_second": 100 * speedup}]
    chosen = {"temperature": 0.0, "batch_size": 4, "speculative_tokens": 2, "speedup": speedup, "curve": curve}
    found = {"runtime": "vllm", "prompts": 8, "max_tokens": 25, "cells": [cell],
             "subsets": {"chat": {"prompts": 5}, "code": {"prompts": 3}}}  # fmt: skip
    return found, {"cells": [speed], "advice": [chosen]}


@pytest.fixture
def store(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SPECC_STORE", str(quick_path / "store"))
    return Store(quick_path / "store")


def put(store: Store, stage: str, found: dict[str, Any], record: dict[str, Any], **params: Any) -> Manifest:
    key = f"{len(store.digests())}".ljust(64, "0")
    made_of: dict[str, Input] = {}
    job = StageJob(stage=stage, version=1, key=key, params=params, facets={}, files={}, inputs=made_of, output="",
                   work="", units="")  # fmt: skip
    output = store.begin(stage, key)
    (output / f"{stage}.json").write_text(json.dumps(found))
    return store.seal(job, "tiny", output, record)


def put_benchmark(store: Store, accepted: int, speedup: float) -> str:
    found, speeds = benchmark(accepted, speedup)
    return put(store, "benchmark", found, {"benchmark": speeds}, max_tokens=accepted).digest


def test_a_benchmarks_page_has_its_cells_its_subsets_and_the_setting(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = put_benchmark(store, 60, 1.25)
    assert main(["show", digest]) == 0
    out = capsys.readouterr().out
    assert (
        out[out.index("measured") :]
        == """\
measured
  temperature  batch  tokens  mean length  95 %         accepted by position  as alone  tokens/s  alone  speed-up  95 %
  0            4      2       1.800        1.700-1.900  0.60 0.20             7/8       125       100    1.25      1.15-1.35

  mean acceptance length by subset (prompts)
  temperature  batch  tokens  chat (5), 95 %      code (3), 95 %
  0            4      2       1.800, 1.600-2.000  1.800, 1.600-2.000

  temperature 0, 4 at once: 2 speculative tokens (speed-up by tokens: 2: 1.25)
"""  # noqa: E501 - as it is printed
    )


def test_two_benchmarks_are_put_side_by_side_with_their_intervals(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = put_benchmark(store, 60, 1.25), put_benchmark(store, 90, 1.4)
    assert main(["diff", one, two]) == 0
    out = capsys.readouterr().out
    assert "max_tokens" in out, "what differs in what they were asked is said first"
    rows = [line.split("  ") for line in out[out.index("where") :].splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    where = "temperature 0, 4 at once, 2 tokens"
    assert [where, "mean acceptance length", "1.800", "2.100", "+0.300", "apart"] in cells
    assert [where, "of chat", "1.800", "2.100", "+0.300", "overlap"] in cells
    assert [where, "speed-up", "1.250", "1.400", "+0.150", "overlap"] in cells
    assert [where, "tokens per second", "125", "140", "+15.000", "-"] in cells
    assert [where, "identical answers", "0.875", "0.875", "+0.000", "-"] in cells


def test_the_data_of_a_diff_has_what_was_measured(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--json", put_benchmark(store, 60, 1.25), put_benchmark(store, 90, 1.4)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0]["path"] == "max_tokens"
    assert found["measured"][0] == {
        "where": "temperature 0, 4 at once, 2 tokens", "name": "mean acceptance length", "before": pytest.approx(1.8),
        "after": pytest.approx(2.1), "difference": pytest.approx(0.3), "overlap": False,
    }  # fmt: skip


def test_two_evaluations_are_put_side_by_side(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluation(length: float, speed: float) -> str:
        served = {"mean_acceptance_length": length}
        found = {"served": served, "untrained": served, "simulated": served,
                 "lossless": {"fp32": {"prompts": 4, "identical": 4}}}  # fmt: skip
        record = {"tokens_per_second": {"plain": 100.0, "speculative": speed}, "speed_up": speed / 100}
        return put(store, "evaluation", found, record, length=length).digest

    assert main(["diff", "--format", "markdown", evaluation(1.5, 110.0), evaluation(1.75, 120.0)]) == 0
    out = capsys.readouterr().out
    assert "| served | mean acceptance length | 1.500 | 1.750 | +0.250 | - |" in out
    assert "| speculative | speed-up | 1.100 | 1.200 | +0.100 | - |" in out


def test_a_result_and_something_else_are_not_compared(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "server.json"
    file.write_text(json.dumps(benchmark(60, 1.2)[0]))
    evaluation = put(store, "evaluation", {"served": {}}, {}).digest
    assert main(["diff", str(file), evaluation]) == 2
    assert "is compared with another one of its kind" in capsys.readouterr().err
    assert main(["diff", str(file), put_benchmark(store, 60, 1.2)]) == 0, "a file and an artifact are of one kind"
