"""Values of DeepSpeed: what of them reaches the keys, and which do not go together."""

from __future__ import annotations

from typing import Any

import pytest

from specc.core.files import flatten
from specc.core.language import Document
from specc.core.language.check import check_document
from specc.core.language.deepspeed import STAGES, DeepSpeed, conflicts
from specc.core.plan.stages import stages
from values import values

SPEC = "version: 1\nname: x\nverifier: {{model: org/verifier}}\ndraft: {{algorithm: eagle3}}\n" \
       "data:\n  sources: [{{file: a.jsonl}}]\ntrain: {{{}}}\n"  # fmt: skip


def train(text: str) -> dict[str, Any]:
    (checked,) = check_document(Document.parse(SPEC.format(text), "s.yaml"))
    return checked.spec.values()["train"]


def ids(stage: int, offload: str, zero: dict[str, Any], **further: Any) -> list[str]:
    section = {"zero": {"stage": stage, "offload": offload}, "deepspeed": {"zero_optimization": zero, **further}}
    return [found.id for found in conflicts(section)]


def test_only_what_is_given_is_a_value() -> None:
    assert "deepspeed" not in train("seed: 1")
    assert "deepspeed" not in train("deepspeed: {}")
    assert "deepspeed" not in train("deepspeed: {zero_optimization: {}}")
    given = {"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": 10}}
    assert train("deepspeed: {zero_optimization: {overlap_comm: false, reduce_bucket_size: 10}}")["deepspeed"] == given


def test_values_decide_the_training_and_what_is_made_of_it() -> None:
    def params(tree: dict[str, Any]) -> dict[str, Any]:
        return {row.name: row.params for row in stages(tree)}

    plain, given = params(values()), params(values(**{"train.deepspeed": {"communication_data_type": "fp32"}}))
    assert {name for name in plain if plain[name] != given[name]} == {"draft", "checkpoint"}
    assert given["draft"]["train"]["deepspeed"] == {"communication_data_type": "fp32"}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("reduce_bucket_size", {1, 2, 3}),
        ("overlap_comm", {1, 2, 3}),
        ("allgather_bucket_size", {1, 2}),
        ("round_robin_gradients", {1, 2}),
        ("stage3_prefetch_bucket_size", {3}),
    ],
)
def test_a_value_of_another_stage_has_no_effect(name: str, stages: set[int]) -> None:
    assert {stage for stage in range(4) if ids(stage, "none", {name: 1}) == []} == stages
    assert ids(0, "none", {name: 1}) == ["E0231"]


def test_stages_are_said_of_values_that_there_are() -> None:
    names = {path.removeprefix("zero_optimization.") for path in STAGES}
    zero = DeepSpeed.model_json_schema()["$defs"]["ZeroOptimization"]["properties"]
    assert names == {name for name in zero if not name.startswith("offload_")}


@pytest.mark.parametrize(
    ("stage", "offload", "zero", "further", "expected"),
    [
        (3, "parameters", {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}, {}, []),
        (3, "parameters", {"offload_param": {"device": "nvme", "nvme_path": "a/b"}}, {"aio": {"queue_depth": 1}}, []),
        (3, "optimizer", {"offload_optimizer": {"device": "nvme", "nvme_path": "./swap"}}, {}, []),
        (3, "optimizer", {"offload_param": {"device": "cpu"}}, {}, ["E0234"]),
        (3, "none", {"offload_optimizer": {"device": "nvme"}}, {}, ["E0234"]),
        (3, "optimizer", {"offload_optimizer": {"device": "nvme", "nvme_path": "a/../../b"}}, {}, ["E0232"]),
        (3, "optimizer", {"offload_optimizer": {"device": "nvme", "nvme_path": "/b"}}, {}, ["E0232"]),
        (3, "optimizer", {"offload_optimizer": {"nvme_path": "b", "buffer_count": 4}}, {}, ["E0233", "E0233"]),
        (2, "optimizer", {"offload_optimizer": {"device": "nvme", "nvme_path": "b"}}, {}, ["E0231"]),
        (3, "optimizer", {}, {"aio": {"queue_depth": 1}}, ["E0233"]),
    ],
)
def test_an_offload_has_what_it_needs(
    stage: int, offload: str, zero: dict[str, Any], further: dict[str, Any], expected: list[str]
) -> None:
    assert ids(stage, offload, zero, **further) == expected


def test_no_field_has_a_default_of_its_own() -> None:
    assert flatten(DeepSpeed().model_dump(exclude_none=True)) == {}
