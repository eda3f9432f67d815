"""A load on vLLM by GuideLLM: both run, on a small verifier and a draft that is right at times."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from projects import make_project
from small import write_prompts
from specc.core.cli.load import _of_spec, table
from specc.core.errors import SpeccError
from specc.core.execute.guard import descendants
from specc.core.measure.load import MAX_TOKENS, drive, talks, texts
from specc.core.serving.served import Served


def test_prompts_are_the_first_turns_of_users(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},'
        ' {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]}\n\n{"prompt": "c"}\n'
    )
    assert texts(path) == ["a", "c"]
    path.write_text('{"prompt": "c"}\n{"text": "d"}\n')
    with pytest.raises(SpeccError) as caught:
        texts(path)
    assert str(caught.value.where).endswith("prompts.jsonl:2:1")


def test_a_spec_without_an_evaluation_brings_no_prompts(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    path = project.folder / "tiny.yaml"
    spec = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({name: value for name, value in spec.items() if name not in ("evaluate", "checks")}))
    assert _of_spec(path, ()) == ([], MAX_TOKENS)


def test_a_verifier_without_a_chat_template_goes_on_with_texts(tmp_path: Path) -> None:
    assert not talks(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert talks(tmp_path)


@pytest.mark.engine
@pytest.mark.full
def test_a_load_reports_both_sides_and_leaves_no_process(small_served: Served, tmp_path: Path) -> None:
    pytest.importorskip("guidellm")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 12)
    before, heard = set(descendants(os.getpid())), list[str]()
    to = tmp_path / "load"
    found = drive(
        small_served,
        profile="throughput",
        seconds=3,
        folder=to,
        prompts=texts(prompts),
        max_tokens=24,
        streams=(4,),
        variables={"VLLM_CPU_KVCACHE_SPACE": "1"},
        say=heard.append,
    )
    assert set(descendants(os.getpid())) <= before
    assert json.loads((to / "load.json").read_text()) == found
    assert heard[0] == "with speculator: starting the server"
    assert str(tmp_path.parent) not in (to / "load.json").read_text()
    for side in ("with_speculator", "without_speculator"):
        (step,) = found[side]["steps"]
        assert (step["strategy"], step["at_once"]) == ("throughput", 4)
        assert step["requests"]["successful"] > 0
        assert step["requests"]["errored"] == 0
        assert step["output_tokens_per_second"] > 0
        assert 0 < step["time_to_first_token_ms"]["p50"] <= step["time_to_first_token_ms"]["p99"]
        own = json.loads((to / f"guidellm-{side}.json").read_text())
        assert own["benchmarks"][0]["metrics"]["request_totals"]["successful"] == step["requests"]["successful"]
        page = (to / f"guidellm-{side}.html").read_text()
        assert not re.search(r"""(?:src=["']?|url\(["']?|@import ["']?|<link[^>]*href=["']?)https?:""", page)
    counts = found["with_speculator"]["speculation"]
    assert counts["drafts"] > 0
    assert counts["draft_tokens"] >= counts["drafts"]
    assert counts["mean_acceptance_length"] == 1 + counts["accepted"] / counts["drafts"]
    (speed_up,) = found["speed_up"]
    assert speed_up["times"] > 0
    assert len(table(found)) == 4
