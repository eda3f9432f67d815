"""The stage `evaluation` in its own process, five vLLM engines one after another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import drafts
from small import CHATML, make_verifier, write_prompts
from specc.core.contracts import Event, Failure, Note, Progress, StageResult
from specc.core.errors import Position
from specc.evaluate import Prompt, render

pytestmark = pytest.mark.engine

PROMPTS, LOSSLESS, MAX_TOKENS = 18, 2, 16


@dataclass(frozen=True)
class Outcome:
    report: dict[str, Any]
    events: list[Event]
    text: str


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Evaluate a random draft that knows the four tokens its verifier likes most."""
    folder = tmp_path_factory.mktemp("evaluation")
    verifier = drafts.calm(make_verifier(folder / "verifier", layers=8, heads=2, kv_heads=1))
    prompts = write_prompts(folder / "held-out.jsonl", PROMPTS)
    rows = [json.loads(line)["messages"] for line in prompts.read_text().splitlines()]
    asked = render([Prompt(tuple(row), Position("p", 1, 1)) for row in rows], verifier, "2026-11-23")
    values = drafts.resolved(verifier, vocabulary=4)
    checkpoint = drafts.assemble(folder / "c", values, verifier, tokens=drafts.habits(verifier, asked, 4))
    values["evaluate"] = {
        "prompts": [drafts.source(prompts, "held-out.jsonl")],
        "max_tokens": MAX_TOKENS,
        "lossless_prompts": LOSSLESS,
    }
    code, events = drafts.run_stage(
        "evaluate", "evaluation", values, folder / "stage",
        inputs={"checkpoint": checkpoint, "draft": folder / "c" / "draft", "verifier": verifier},
        files={"held-out.jsonl": prompts},
    )  # fmt: skip
    assert code == 0, (events[-1], (folder / "stage" / "log").read_text()[-3000:])
    text = (folder / "stage" / "output" / "evaluation.json").read_text()
    return Outcome(json.loads(text), events, text)


def test_vllm_drafted_and_its_counters_add_up(outcome: Outcome) -> None:
    for name, prompts in (("served", PROMPTS), ("untrained", 16)):
        counts = outcome.report[name]
        assert counts["drafts"] > 0
        assert counts["draft_tokens"] == 3 * counts["drafts"]
        assert counts["accepted"] == sum(counts["accepted_per_position"])
        assert counts["mean_acceptance_length"] == pytest.approx(1 + counts["accepted"] / counts["drafts"])
        # Every draft adds the verifier's own token to those accepted; each prompt's first token comes without one.
        assert counts["output_tokens"] <= counts["drafts"] + counts["accepted"] + prompts
    assert outcome.report["served"]["accepted"] > 0


def test_the_replay_agrees_with_what_was_served(outcome: Outcome) -> None:
    served, simulated = outcome.report["served"], outcome.report["simulated"]
    # In bf16 near ties fall either way; the exact agreement is tested in fp32, in test_serving.py.
    assert abs(served["mean_acceptance_length"] - simulated["mean_acceptance_length"]) < 0.05
    assert abs(served["drafts"] - simulated["drafts"]) <= 0.05 * served["drafts"]


def test_greedy_output_is_identical_in_fp32_and_differs_by_noise_alone_in_bf16(outcome: Outcome) -> None:
    lossless = outcome.report["lossless"]
    assert lossless["fp32"] == {"prompts": LOSSLESS, "identical": LOSSLESS, "first_differences": []}
    assert lossless["bfloat16"]["prompts"] == PROMPTS
    for difference in lossless["bfloat16"]["first_differences"]:
        assert difference["gap_ulp"] is None or difference["gap_ulp"] <= 16


def test_speeds_are_in_the_record_and_not_in_the_artifact(outcome: Outcome) -> None:
    last = outcome.events[-1]
    assert isinstance(last, StageResult)
    assert set(last.record["tokens_per_second"]) == {"plain", "speculative"}
    assert last.record["speed_up"] > 0
    assert "second" not in outcome.text


def test_progress_counts_every_answer_once(outcome: Outcome) -> None:
    progress = [event for event in outcome.events if isinstance(event, Progress)]
    total = 3 * PROMPTS + 16 + 2 * LOSSLESS
    assert {event.total for event in progress} == {total}
    assert [event.done for event in progress] == sorted(event.done for event in progress)
    assert progress[-1].done == total
    assert not [event for event in outcome.events if isinstance(event, Note) and "otherwise" in event.text]


def test_a_checkpoint_that_vllm_cannot_load_fails_in_words(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    verifier = make_verifier(tmp_path / "verifier", layers=8, heads=2, kv_heads=1)
    prompts = write_prompts(tmp_path / "p.jsonl", 2)
    values = drafts.resolved(verifier)
    checkpoint = drafts.assemble(tmp_path / "c", values, verifier)
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["final_norm.weight"] = tensors.pop("norm.weight")
    save_file(tensors, checkpoint / "model.safetensors")
    values["evaluate"]["prompts"] = [drafts.source(prompts, "p.jsonl")]
    code, events = drafts.run_stage(
        "evaluate", "evaluation", values, tmp_path / "stage",
        inputs={"checkpoint": checkpoint, "draft": tmp_path / "c" / "draft", "verifier": verifier},
        files={"p.jsonl": prompts},
    )  # fmt: skip
    assert code == 3
    assert isinstance(events[-1], Failure)
    assert events[-1].message.startswith("vLLM cannot run the checkpoint with its verifier: ")
    assert events[-1].hint


def test_a_template_prints_the_pinned_date(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %B %Y') }}" + CHATML
    verifier = make_verifier(tmp_path / "verifier", template=template)
    prompt = Prompt(({"role": "user", "content": "Hi"},), Position("p.jsonl", 1, 1))
    (tokens,) = render([prompt], verifier, "2026-11-23")
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(str(verifier)).decode(tokens)
    assert text == "23 November 2026<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
