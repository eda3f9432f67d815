"""The stage `benchmark` in its own process: two engines of vLLM in turn, over a grid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import drafts
from small import make_verifier
from specc.core.cli import main
from specc.core.contracts import Event, Failure, Input, Note, Progress, StageJob, StageResult
from specc.core.errors import Position
from specc.core.store import Store
from specc.evaluate import Prompt, render

pytestmark = pytest.mark.engine

THINGS = ["bread", "the sky", "a fox", "Paris", "yeast", "a dog", "water", "France"]
KINDS = ["coding", "writing", "maths"]
GRID = {"temperatures": [0.0, 0.3], "speculative_tokens": [1, 3], "batch_sizes": [2, 4], "repeats": 2}
MAX_TOKENS = 12


@dataclass(frozen=True)
class Bench:
    """A random draft that knows what its verifier likes most, in fp32, and the prompts."""

    folder: Path
    verifier: Path
    checkpoint: Path
    values: dict[str, Any]
    files: dict[str, Path]

    def measure(self, name: str, grid: Mapping[str, Any]) -> tuple[int, list[Event]]:
        """Run the stage in `folder/name`."""
        values = {**self.values, "evaluate": {**self.values["evaluate"], "grid": grid}}
        return drafts.run_stage(
            "evaluate", "benchmark", values, self.folder / name,
            inputs={"checkpoint": self.checkpoint, "verifier": self.verifier}, files=self.files,
        )  # fmt: skip

    def report(self, name: str) -> dict[str, Any]:
        """Return what it wrote."""
        return json.loads((self.folder / name / "output" / "benchmark.json").read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("benchmark")
    verifier = drafts.calm(make_verifier(folder / "verifier", layers=8, heads=2, kv_heads=1, dtype="float32"))
    questions, own = folder / "question.jsonl", folder / "own.jsonl"
    rows = [
        {"question_id": index, "category": KINDS[index % 3], "turns": [f"Explain {thing} to a child.", "And to a fox."]}
        for index, thing in enumerate(THINGS)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own.write_text(json.dumps({"prompt": "Why is the sky blue?"}) + "\n")
    asked = [Prompt(({"role": "user", "content": row["turns"][0]},), Position("p", 1, 1)) for row in rows]
    values = drafts.resolved(verifier, vocabulary=4)
    values["export"]["dtype"] = values["verifier"]["dtype"] = "float32"
    known = drafts.habits(verifier, render(asked, verifier, values["date"]), 4)
    values["evaluate"] = {
        "prompts": [
            {**drafts.source(questions, "question.jsonl"), "categories": ["coding", "writing"]},
            drafts.source(own, "own.jsonl"),
        ],
        "max_tokens": MAX_TOKENS,
    }
    checkpoint = drafts.assemble(folder / "c", values, verifier, tokens=known)
    return Bench(folder, verifier, checkpoint, values, {"question.jsonl": questions, "own.jsonl": own})


@pytest.fixture(scope="module")
def events(bench: Bench) -> list[Event]:
    code, events = bench.measure("all", GRID)
    assert code == 0, (events[-1], (bench.folder / "all" / "log").read_text()[-3000:])
    return events


@pytest.fixture(scope="module")
def report(bench: Bench, events: list[Event]) -> dict[str, Any]:
    assert events
    return bench.report("all")


@pytest.fixture(scope="module")
def record(events: list[Event]) -> dict[str, Any]:
    last = events[-1]
    assert isinstance(last, StageResult)
    return dict(last.record["benchmark"])


def counted(report: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each cell with its own counts and those of each of its subsets."""
    for cell in report["cells"]:
        yield cell, cell
        for subset in cell["subsets"].values():
            yield cell, subset


def test_every_combination_is_a_cell_over_the_chosen_prompts(report: dict[str, Any]) -> None:
    found = [(cell["speculative_tokens"], cell["temperature"], cell["batch_size"]) for cell in report["cells"]]
    assert found == [(tokens, heat, batch) for tokens in (1, 3) for heat in (0.0, 0.3) for batch in (2, 4)]
    assert report["subsets"] == {"coding": {"prompts": 3}, "own": {"prompts": 1}, "writing": {"prompts": 3}}
    assert (report["prompts"], report["max_tokens"], report["runtime"]) == (7, MAX_TOKENS, "vllm")


def test_counts_add_up_for_a_cell_and_for_each_subset(report: dict[str, Any]) -> None:
    prompts = {"": 7, "coding": 3, "own": 1, "writing": 3}
    for cell, counts in counted(report):
        tokens = cell["speculative_tokens"]
        assert counts["draft_tokens"] == tokens * counts["drafts"]
        assert counts["accepted"] == sum(counts["accepted_per_position"])
        assert len(counts["accepted_per_position"]) == tokens
        assert counts["mean_acceptance_length"] == pytest.approx(1 + counts["accepted"] / counts["drafts"])
        low, high = counts["interval"]
        assert 1 <= low <= counts["mean_acceptance_length"] <= high <= 1 + tokens
    for cell in report["cells"]:
        assert cell["accepted"] > 0 or cell["temperature"], "a draft that knows what is written most is right at times"
        for name in ("drafts", "draft_tokens", "accepted", "output_tokens"):
            assert cell[name] == sum(subset[name] for subset in cell["subsets"].values())
        for name, subset in cell["subsets"].items():
            # An answer's first token comes without a draft, and its end cuts less than a draft and the token after it.
            whole = prompts[name] + subset["drafts"] + subset["accepted"]
            assert 0 <= whole - subset["output_tokens"] <= prompts[name] * cell["speculative_tokens"]


def test_greedy_output_is_that_of_the_verifier_alone(report: dict[str, Any]) -> None:
    for cell in report["cells"]:
        expected = None if cell["temperature"] else {"identical": 7, "prompts": 7}
        assert cell["lossless"] == expected


@pytest.mark.full
def test_an_engine_for_larger_batches_gives_the_bits_of_one_for_smaller(bench: Bench, report: dict[str, Any]) -> None:
    code, events = bench.measure("one", {**GRID, "speculative_tokens": [3], "batch_sizes": [2]})
    assert code == 0, events[-1]
    cells = bench.report("one")["cells"]
    assert len(cells) == 2
    assert all(cell in report["cells"] for cell in cells)


def stored(bench: Bench, store: Store) -> str:
    """Put the verifier and the checkpoint into a store, as a build would have; return the checkpoint's digest."""
    digests: dict[str, str] = {}
    for stage, folder in (("verifier", bench.verifier), ("checkpoint", bench.checkpoint)):
        inputs = {name: Input(path="", digest=digest) for name, digest in digests.items()}
        params = {name: value for name, value in bench.values.items() if name != "evaluate"}
        job = StageJob(stage=stage, version=1, key=stage.ljust(64, "0"), params=params, facets={}, files={},
                       inputs=inputs, output="", work="", units="")  # fmt: skip
        output = store.begin(stage, job.key)
        for path in folder.iterdir():
            shutil.copy(path, output / path.name)
        digests[stage] = store.seal(job, "small", output, {}).digest
    return digests["checkpoint"]


def test_a_checkpoint_is_measured_by_its_id_into_an_artifact(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECC_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(bench.folder)
    digest = stored(bench, Store(tmp_path / "store"))
    asked = ["evaluate", digest[:12], "--prompts", "question.jsonl", "--batch-size", "4", "--repeats", "2",
             "--max-tokens", "8", "--threads", "1"]  # fmt: skip
    assert main(asked) == 0
    said = capfd.readouterr()
    assert "by subset" in said.out
    assert "temperature 0, 4 at once: " in said.out
    assert main([*asked, "--json"]) == 0, "now it is there"
    found = json.loads(capfd.readouterr().out)
    assert found["digest"] in said.err
    (cell,) = found["benchmark"]["cells"]
    assert (cell["temperature"], cell["speculative_tokens"], cell["batch_size"]) == (0.0, 3, 4)
    assert found["benchmark"]["subsets"].keys() == set(KINDS)
    assert found["speeds"]["cells"][0]["repeats"] == 2
    assert main(["evaluate", digest[:12], "--prompts", "question.jsonl", "--tokens", "99"]) == 2
    assert "at most" in capfd.readouterr().err


def test_every_run_of_a_cell_repeats_also_one_that_draws(events: list[Event]) -> None:
    assert not [event.text for event in events if isinstance(event, Note)]


def test_progress_counts_every_answer_once(events: list[Event]) -> None:
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total == 7 * 4 * (1 + 2 * (1 + 2 * 2))
    assert [event.done for event in progress] == sorted(event.done for event in progress)


def test_speeds_are_in_the_record_and_not_in_the_artifact(bench: Bench, record: dict[str, Any]) -> None:
    assert len(record["cells"]) == 8
    for cell in record["cells"]:
        assert cell["interval"][0] <= cell["speedup"] <= cell["interval"][1]
        assert cell["repeats"] == 2
        assert min(cell["tokens_per_second"], cell["plain_tokens_per_second"]) > 0
    text = (bench.folder / "all" / "output" / "benchmark.json").read_text()
    assert "second" not in text
    assert "speedup" not in text


def test_the_record_says_which_setting_the_speeds_speak_for(record: dict[str, Any]) -> None:
    found = {(one["temperature"], one["batch_size"]): one for one in record["advice"]}
    assert set(found) == {(heat, batch) for heat in (0.0, 0.3) for batch in (2, 4)}
    for one in found.values():
        assert [point["speculative_tokens"] for point in one["curve"]] == [1, 3]
        assert one["speculative_tokens"] in (0, 1, 3)


def test_a_draft_that_vllm_does_not_run_here_is_refused(bench: Bench, tmp_path: Path) -> None:
    draft = {"algorithm": "xpress"}
    code, events = drafts.run_stage(
        "evaluate", "benchmark", {**bench.values, "draft": draft, "evaluate": {"grid": GRID, "max_tokens": 8}},
        tmp_path, inputs={"checkpoint": bench.checkpoint, "verifier": bench.verifier},
    )  # fmt: skip
    assert code == 3
    assert isinstance(events[-1], Failure)
    assert events[-1].message == "vLLM does not run this draft on `cpu`, and other speeds say nothing"
