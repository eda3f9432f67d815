"""Estimates: hand-computed sums for a small model, and where each number is taken from."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from specc.core import lock as locks
from specc.core.algorithms import ALGORITHMS, Algorithm, TrainingCost
from specc.core.contracts import Input, StageJob
from specc.core.lock import CLASSES, MachineClass, machine_class
from specc.core.plan import ROWS, Estimate, Estimator, Plan, decide, lower, stages, total
from specc.core.plan.corpus import ANSWER, FRAME, LETTERS, SAMPLE, count, look_into, mean_answer
from specc.core.plan.costs import COSTS, ENCODED, decoded
from specc.core.plan.rates import BYTES, GFLOPS, SHARE, START
from specc.core.resolve import restore
from specc.core.store import Store
from values import values

MACHINE = machine_class("cpu-avx512_bf16")
HERE = platform.node()
BODY = 6 * 64 * (2 * 64 + 2 * 32 + 3 * 128)
"""Weights of the verifier's layers in `values`: 6 of hidden size 64, 4 heads and 2 for keys, of 16, inner size 128."""
FORWARD = 2 * BODY + 2 * 100 * 64 * 6
"""Operations a token over rows of 100 tokens: each sees 50 in the mean, in two products of two operations each."""
INDEXES: dict[str, dict[str, Any]] = {
    "conversations": {"rows": 10, "train": 9, "validation": 1},
    "responses": {"rows": 10, "tokens": 401},
    "tokens": {"rows": 10, "tokens": 1000, "shards": [{"trained_tokens": 300}, {"trained_tokens": 100}]},
}
"""What the artifacts of a plan say: ten rows of a hundred tokens, forty of them of an answer."""


@pytest.fixture
def store(quick_path: Path) -> Store:
    return Store(quick_path / "store")


def estimates(
    values: dict[str, Any], machine: MachineClass, store: Store | None, files: dict[str, Path] | None = None
) -> dict[str, Estimate]:
    plan = lower(values, machine)
    found = Estimator(machine, store).estimates(plan, values, files)
    return {stage.name: found[stage.recipe] for stage in plan.stages}


def put(store: Store, plan: Plan, stage: str, content: object, **record: Any) -> None:
    """Seal an artifact under the key that a plan has for its stage, with the record of its run."""
    there = {item.stage.name: item for item in decide(plan, store)}
    item = there[stage]
    assert item.key is not None
    inputs = {slot: Input(path="", digest=there[name].digest or "") for slot, name in item.stage.row.inputs.items()}
    job = StageJob(stage=stage, version=item.stage.row.version, key=item.key, params=item.stage.params({}),
                   facets=item.stage.facets, inputs=inputs, files={}, output="", work="", units="")  # fmt: skip
    output = store.begin(stage, item.key)
    (output / ("evaluation.json" if stage == "evaluation" else "index.json")).write_text(json.dumps(content))
    store.seal(job, plan.name, output, {"host": HERE, **record})


def put_data(store: Store, tree: dict[str, Any], indexes: Mapping[str, Any] = INDEXES) -> Plan:
    """Put what the hidden states are made of into a store; return the plan."""
    plan = lower(tree, MACHINE)
    for stage in ("verifier", *indexes):
        put(store, plan, stage, indexes.get(stage, {}))
    return plan


def write(path: Path, row: object, count: int) -> dict[str, Path]:
    """Write a data file of equal rows; return the places of the files of a spec that has this one only."""
    path.write_text(f"{json.dumps(row)}\n" * count)
    return {"prompts.jsonl": path, "held-out.jsonl": path}


def test_tokens_and_operations_follow_from_the_artifacts_of_the_plan(store: Store) -> None:
    tree = values()
    put_data(store, tree)
    found = estimates(tree, MACHINE, store)
    assert found["responses"].tokens == 400, "the loss mask counts what is written, and later artifacts know more"
    assert found["responses"].flops == 1000 * FORWARD + 400 * 2 * 384 * 64
    assert (found["hidden_states"].tokens, found["hidden_states"].flops) == (1000, 1000 * FORWARD)
    assert found["draft"].tokens == (1000 - 2 * 10) * 0.9, "a row's last two positions propose nothing"
    assert {name for name, one in found.items() if one.flops is None} == {
        "verifier", "conversations", "tokens", "vocabulary", "checkpoint",
    }  # fmt: skip


def test_training_costs_what_the_module_computes(store: Store) -> None:
    """The draft's layer: q 64x128, k and v 32x128 each, o 64x64, three 64x128; the fusion 64x192, the head 128x64."""
    tree = values()
    put_data(store, tree)
    fuse, memory, rest, head, attention = 64 * 192, 2 * 32 * 128, 64 * 128 + 64 * 64 + 3 * 64 * 128, 128 * 64, 12_800
    rows = 882 * (4 * fuse + 6 * memory)
    targets = 360 * (6 * rest + 2 * 6 * (memory + rest) + 3 * 3.5 * attention + (2 + 3 * 4) * head)
    guess = 2 * (fuse + 3 * (memory + rest + head)) + 3 * attention
    validation = 2 * 0.1 * (1000 * guess + 400 * (guess + 2 * head))  # before the first epoch and after it
    assert estimates(tree, MACHINE, store)["draft"].flops == pytest.approx(rows + targets + validation)

    tree["train"]["optimizer"]["name"] = "muon"
    products = [(64, 192), (64, 128), (32, 128), (32, 128), (64, 64), *[(64, 128)] * 3]
    muon = 882 / 256 * 5 * sum(4 * low * low * high + 2 * low**3 for low, high in products)
    assert estimates(tree, MACHINE, store)["draft"].flops == pytest.approx(rows + targets + validation + muon)


def test_what_a_row_costs_and_keeps_is_the_algorithms_to_say(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = TrainingCost(row=1000, target=100, guess=10, checked=1, kept=3)
    other = replace(ALGORITHMS["eagle3"], training=lambda *_: cost, layers=lambda _: [1] * 8)
    monkeypatch.setitem(cast("dict[str, Algorithm]", ALGORITHMS), "eagle3", other)
    tree = values()
    put_data(store, tree)
    found = estimates(tree, MACHINE, store)
    assert found["draft"].flops == pytest.approx(882 * 1000 + 360 * 100 + 2 * 0.1 * (1000 * 10 + 400 * 1))
    assert found["hidden_states"].disk == pytest.approx(1000 * 9 * 64 * 2 * ENCODED["bfloat16"])


def test_epochs_and_steps_multiply_the_tokens(store: Store) -> None:
    tree = values(**{"train.epochs": 3})
    put_data(store, tree)
    assert estimates(tree, MACHINE, store)["draft"].tokens == 3 * 882
    tree["train"] |= {"epochs": None, "steps": 2}
    assert estimates(tree, MACHINE, store)["draft"].tokens == 2 * 256
    tree["train"] |= {"epochs": 1, "steps": 1000}
    assert estimates(tree, MACHINE, store)["draft"].tokens == 882


def test_bytes_follow_from_shapes(store: Store) -> None:
    tree = values()
    put_data(store, tree)
    found = {name: one.disk for name, one in estimates(tree, MACHINE, store).items()}
    layer = 64 * 128 + 2 * 32 * 128 + 64 * 64 + 3 * 64 * 128
    learnt = layer + 64 * 192 + 64 * 3 + 64 + 192
    assert found["hidden_states"] == pytest.approx(1000 * (3 + 1) * 64 * 2 * ENCODED["bfloat16"])
    assert found["vocabulary"] == 128 * 8 + 384
    assert found["draft"] == 2 * 4 * learnt, "in fp32, as it is and as it was"
    assert found["checkpoint"] == 2 * (learnt + 384 * 64 + 128 * 64) + 128 * 8 + 384
    assert found["verifier"] == 2 * (BODY + 384 * 64), "no file is here to be asked"


def test_a_verifier_that_is_copied_has_the_size_of_its_files(tmp_path: Path) -> None:
    files = {f"verifier/{name}": tmp_path / name for name in values()["verifier"]["files"]}
    for path in files.values():
        path.write_bytes(b"twelve bytes")
    assert estimates(values(), MACHINE, None, files)["verifier"].disk == 24
    gguf = values(**{"verifier.format": "gguf"})
    assert estimates(gguf, MACHINE, None, files)["verifier"].disk == 2 * (BODY + 384 * 64), "it is written anew"


def test_without_a_record_rates_are_declared(store: Store) -> None:
    tree = values()
    put_data(store, tree)
    one = estimates(tree, MACHINE, store)["hidden_states"]
    rate = 1e9 * GFLOPS["cpu-avx512_bf16"][0] * SHARE["hidden_states"] * 2
    assert one.seconds == pytest.approx(START["hidden_states"]["cpu"] + 1000 * FORWARD / rate)
    assert not one.measured
    wide = values(**{"verifier.dtype": "float32"})
    put_data(store, wide)
    start, slower = START["hidden_states"]["cpu"], estimates(wide, MACHINE, store)["hidden_states"]
    assert slower.seconds - start == pytest.approx((one.seconds - start) * 307 / 140)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_machines_has_declared_rates(name: str) -> None:
    found = estimates(values(), machine_class(name), None)
    assert all(one.seconds > 0 and not one.measured for one in found.values() if one.flops is not None)


def test_a_rate_that_was_measured_here_goes_before_a_declared_one(store: Store) -> None:
    tree, other = values(), values(**{"data.sequence_length": 256})
    put(store, put_data(store, other), "hidden_states", {}, seconds=7.0, tokens=500, tokens_per_second=100.0)
    put_data(store, tree)
    found = estimates(tree, MACHINE, store)["hidden_states"]
    assert (found.seconds, found.measured) == (2 + 1000 / 100, True), "2 of those 7 s were the start"
    assert not estimates(tree, machine_class("cpu-avx2"), store)["hidden_states"].measured
    assert not estimates(values(**{"runtime.threads": 8}), MACHINE, store)["hidden_states"].measured


def test_a_record_of_another_machine_says_nothing(store: Store) -> None:
    tree, other = values(), values(**{"data.sequence_length": 256})
    put(store, put_data(store, other), "hidden_states", {}, seconds=7.0, tokens=500, tokens_per_second=100.0,
        host=f"not-{HERE}")  # fmt: skip
    put_data(store, tree)
    assert not estimates(tree, MACHINE, store)["hidden_states"].measured


def test_the_most_similar_run_counts_and_others_are_scaled_by_operations(store: Store) -> None:
    tree, deep = values(), values(**{"verifier.config.num_hidden_layers": 12})
    put(store, put_data(store, deep), "hidden_states", {}, seconds=10.0, tokens=1000, tokens_per_second=100.0)
    put_data(store, tree)
    assert estimates(tree, MACHINE, store)["hidden_states"].seconds == pytest.approx(5.0), "half the layers"
    same = values(**{"data.sequence_length": 256})
    put(store, put_data(store, same), "hidden_states", {}, seconds=4.0, tokens=1000, tokens_per_second=250.0)
    put(store, put_data(store, values(**{"verifier.config.num_hidden_layers": 24})), "hidden_states", {}, seconds=1.0,
        tokens=1000, tokens_per_second=1000.0)  # fmt: skip
    assert estimates(tree, MACHINE, store)["hidden_states"].seconds == pytest.approx(4.0), "the same verifier's"


def test_training_is_measured_by_the_parts_of_its_record(store: Store) -> None:
    tree, other = values(**{"train.epochs": 2}), values(**{"train.seed": 7})
    plan = put_data(store, other)
    put(store, plan, "vocabulary", {})
    put(store, plan, "hidden_states", {})
    put(store, plan, "draft", {}, seconds=110.0, tokens_per_second=8.82, peak_rss=123_456_789,
        parts={"start": 9.0, "read": 1.0, "step": 90.0, "data": 10.0})  # fmt: skip
    one, two = estimates(other, MACHINE, store)["draft"], estimates(tree, MACHINE, store)["draft"]
    assert (one.seconds, one.measured, one.memory) == (pytest.approx(110.0), True, 123_456_789)
    assert two.seconds == pytest.approx(9 + 101 * (two.flops or 0) / (one.flops or 1)), "what is in two epochs"
    ranks = values(**{"runtime.train.ranks": 2})
    assert not estimates(ranks, MACHINE, store)["draft"].measured


def test_an_evaluation_is_scaled_by_its_prompts(store: Store, tmp_path: Path) -> None:
    tree = values()
    plan = put_data(store, tree)
    for stage in ("vocabulary", "hidden_states", "draft"):
        put(store, plan, stage, {})
    put(store, plan, "checkpoint", {})
    put(store, plan, "evaluation", {"prompts": 20}, seconds=30.0)
    files = write(tmp_path / "prompts", {"prompt": "x" * 100}, 40)
    found = estimates(tree, MACHINE, store, files)["evaluation"]
    assert (found.seconds, found.measured) == (pytest.approx(60.0), True)


def test_stages_without_a_model_are_measured_by_bytes(store: Store, tmp_path: Path) -> None:
    put(store, lower(values(), MACHINE), "conversations", {"rows": 10, "text": "x" * 1000}, seconds=3.0, order=1)
    size = store.manifest(store.digests()[0]).size
    found = estimates(values(**{"data.shard_rows": 9}), MACHINE, store, write(tmp_path / "a", {"text": "hi"}, 500))
    one = found["conversations"]
    assert (one.seconds, one.measured) == (pytest.approx(3.0 * one.disk / size, rel=1e-3), True)
    assert not found["verifier"].measured


def test_what_is_no_number_in_a_record_is_not_taken_for_one(store: Store) -> None:
    tree = values()
    for number, record in enumerate([
        {}, {"seconds": "7"}, {"seconds": 0, "tokens": 1, "tokens_per_second": 1}, {"seconds": 7.0, "tokens": None},
        {"seconds": 7.0, "tokens": 0, "tokens_per_second": 9.0}, {"seconds": 7.0, "parts": {"step": "long"}},
        {"seconds": 7.0, "tokens": True, "tokens_per_second": {"plain": 3}},
    ]):  # fmt: skip
        plan = put_data(store, values(**{"data.sequence_length": 100 + number}))
        put(store, plan, "hidden_states", {}, **record)
    put_data(store, tree)
    assert not estimates(tree, MACHINE, store)["hidden_states"].measured


def test_prompts_and_answers_are_reckoned_from_a_sample(tmp_path: Path) -> None:
    files = write(tmp_path / "a", {"messages": [{"role": "user", "content": "x" * 80}]}, 50)
    tree = values(**{"data.responses.max_tokens": 60, "data.sequence_length": 512})
    found = estimates(tree, MACHINE, None, files)
    answer = (found["responses"].tokens or 0) / 50
    assert 50 < answer < 60, "some answers end before they are cut"
    assert (found["tokens"].tokens or 0) / 50 == pytest.approx(80 / LETTERS + 2 * FRAME + answer, rel=0.01)
    long = values(**{"data.responses.max_tokens": 100_000, "data.sequence_length": 200_000})
    assert (estimates(long, MACHINE, None, files)["responses"].tokens or 0) / 50 == pytest.approx(ANSWER, rel=0.01)
    short = values(**{"data.sequence_length": 64})
    assert (estimates(short, MACHINE, None, files)["tokens"].tokens or 0) <= 64 * 50


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q" * 400}, {"role": "assistant", "content": "a" * 800}]},
        {"conversations": [{"from": "human", "value": "q" * 400}, {"from": "gpt", "value": "a" * 800}]},
        {"instruction": "q" * 300, "input": "q" * 100, "output": "a" * 800},
        {"prompt": "q" * 400, "completion": "a" * 800},
    ],
)
def test_answers_of_every_shape_are_told_from_prompts(row: object, tmp_path: Path) -> None:
    tree = values(**{"data.responses.from": "data", "data.sequence_length": 1000, "data.validation.share": 0.0})
    found = estimates(tree, MACHINE, None, write(tmp_path / "a", row, 10))
    assert "responses" not in found
    assert found["tokens"].tokens == 10 * (400 / LETTERS + 2 * FRAME + 800 / LETTERS)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"no JSON\n", b"[1, 2]\n", b"\xff\xfe\n", b'{"messages": [1, {}]}\n', b"[" * 9999]
)
def test_a_file_that_is_no_data_is_the_business_of_the_build(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(line)
    estimates(values(), MACHINE, None, {"prompts.jsonl": tmp_path / "a", "held-out.jsonl": tmp_path})


def test_a_file_of_any_size_is_counted_by_its_start(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "x" * 85}).encode() + b"\n"  # a hundred bytes
    with (tmp_path / "a").open("wb") as file:
        file.write(line * (2 * SAMPLE // len(line)))
        file.truncate(100_000_000_000)  # the rest is a hole
    started = time.monotonic()
    tree = values(**{"data.responses.max_tokens": 1, "evaluate": None})
    found = estimates(tree, MACHINE, None, {"prompts.jsonl": tmp_path / "a"})
    assert time.monotonic() - started < 1
    assert found["responses"].tokens == pytest.approx(1e9, rel=0.01)
    tree["data"]["sources"][0]["rows"] = 7
    assert found["responses"].complete
    assert estimates(tree, MACHINE, None, {"prompts.jsonl": tmp_path / "a"})["responses"].tokens == 7


def test_rows_that_nobody_can_count_make_an_estimate_incomplete(store: Store) -> None:
    tree = values(**{"evaluate": None})
    found = estimates(tree, MACHINE, None)
    assert {name for name, one in found.items() if one.complete} == {"verifier", "checkpoint"}
    put(store, lower(tree, MACHINE), "conversations", {"rows": 40, "validation": 4})
    found = estimates(tree, MACHINE, store)
    assert all(one.complete for one in found.values())
    assert (found["responses"].tokens or 0) > 0
    tree["data"]["sources"][0]["rows"] = 12
    assert all(one.complete for one in estimates(tree, MACHINE, None).values())


ODD: list[Callable[[dict[str, Any]], object]] = [
    lambda tree: tree.update(evaluate=None),
    lambda tree: tree["data"]["responses"].update({"from": "data"}),
    lambda tree: tree["draft"].update(vocabulary=384),
    lambda tree: tree["draft"].update(layers=3, sliding_window=4, fc_norm=True, norm_before_fc=False),
    lambda tree: tree["data"].update(validation={"share": 0.0, "sources": [{"file": "held-out.jsonl", "rows": None}]}),
    lambda tree: tree["train"].update(epochs=None, steps=10, precision="fp32"),
    lambda tree: tree["runtime"]["train"].update(ranks=[{"ranks": 4, "until": 5}, {"ranks": 1, "until": None}]),
    lambda tree: tree["evaluate"].update(lossless_prompts=0),
    lambda tree: tree["export"].update(dtype="float32"),
    lambda tree: tree["verifier"]["config"].update(tie_word_embeddings=False),
]


@pytest.mark.parametrize("change", ODD)
@pytest.mark.parametrize("rows", [0, 1, 100])
def test_every_stage_of_an_odd_spec_has_an_estimate(
    change: Callable[[dict[str, Any]], object], rows: int, tmp_path: Path, store: Store
) -> None:
    tree = values()
    change(tree)
    files = write(tmp_path / "a", {"prompt": "Hello"}, rows)
    for machine in (MACHINE, machine_class("cuda")):
        for where in (None, store):
            found = estimates(tree, machine, where, files)
            assert list(found) == [row.name for row in stages(tree)]
            assert all(one.seconds >= 0 and one.disk >= 0 and one.memory > 0 for one in found.values())


@pytest.mark.parametrize("name", ["quickstart", "smollm2-135m-eagle3"])
def test_every_stage_of_a_shipped_spec_has_an_estimate(name: str, root: Path) -> None:
    builds = locks.read(root / "specs" / f"{name}.lock.json")
    assert builds is not None
    resolved = restore(builds[""].locked, base=root / "specs")
    found = estimates(resolved.values, MACHINE, None, resolved.files)
    assert list(found) == [row.name for row in stages(resolved.values)]
    assert all(one.seconds > 0 and one.disk > 0 and one.memory > 0 and one.complete for one in found.values())


def test_declared_rates_give_what_the_quickstart_took_where_they_were_measured(root: Path) -> None:
    """README.md, `What was measured`, last column: 105, 68, 202 and 105 s on two idle cores of this class."""
    builds = locks.read(root / "specs/quickstart.lock.json")
    assert builds is not None
    resolved = restore(builds[""].locked, base=root / "specs")
    found = estimates(resolved.values, MACHINE, None, resolved.files)
    took = {"responses": 105, "hidden_states": 68, "draft": 202, "evaluation": 105}
    assert {name: found[name].seconds for name in took} == pytest.approx(took, rel=0.1)


def test_a_sum_adds_everything_but_memory() -> None:
    one = Estimate(seconds=1.0, disk=10, memory=300, tokens=None, flops=None, measured=True)
    two = Estimate(seconds=2.0, disk=20, memory=200, tokens=5, flops=7.0, measured=False, complete=False)
    assert total([one, two]) == Estimate(
        seconds=3.0, disk=30, memory=300, tokens=5, flops=7.0, measured=False, complete=False
    )


def test_a_benchmark_takes_what_its_cells_do(tmp_path: Path) -> None:
    files = write(tmp_path / "prompts", {"prompt": "x" * 100}, 20)
    grid = {"temperatures": [0.0], "speculative_tokens": [3], "batch_sizes": [16], "repeats": 3}

    def found(**changes: Any) -> Estimate:
        return estimates(values(**{"evaluate.grid": {**grid, **changes}}), MACHINE, None, files)["benchmark"]

    one = found()
    assert one.tokens == pytest.approx(20 * (1 + 1 + 2 * 3) * mean_answer(16), abs=1)
    assert found(temperatures=[0.0, 0.7]).flops == pytest.approx(2 * (one.flops or 0))
    assert found(batch_sizes=[1]).seconds > one.seconds, "small batches are slow"
    assert found(repeats=6).seconds > one.seconds
    assert found(speculative_tokens=[1, 3]).seconds > one.seconds + 5, "one more engine"


def test_an_evaluation_without_vllm_answers_few_prompts_and_slowly(tmp_path: Path) -> None:
    files = write(tmp_path / "prompts", {"prompt": "x" * 100}, 2000)
    tree = values(**{"evaluate.max_tokens": 256})
    alone = values(**{"evaluate.max_tokens": 256, "draft.algorithm": "xpress"})
    corpus = count(tree, files, {}, look_into)
    assert corpus.prompts == decoded(tree, corpus, "cpu").prompts == 2000
    assert decoded(alone, corpus, "cpu").prompts == 4, "1,024 tokens in all"


def test_every_stage_has_a_declared_rate() -> None:
    """Of one kind alone: by operations and a start, or by bytes."""
    assert set(BYTES).isdisjoint(START)
    assert {*BYTES, *START} == set(ROWS)
    assert set(START) == set(SHARE) == set(COSTS)


def sized(tmp_path: Path, count: int, name: str) -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps({"prompt": "x" * 96}) + "\n" for _ in range(count)))
    return path


def test_rows_of_folders_and_mixes_are_counted_and_those_of_others_are_not_known(tmp_path: Path) -> None:
    files = {"d/a.jsonl": sized(tmp_path, 30, "a.jsonl"), "d/b.txt": sized(tmp_path, 10, "b.txt"),
             "c.jsonl": sized(tmp_path, 200, "c.jsonl"), "e.jsonl.gz": sized(tmp_path, 5, "e.jsonl.gz")}  # fmt: skip

    def rows(*sources: dict[str, Any]) -> tuple[float, bool]:
        data = {"sources": list(sources), "validation": {"share": 0.0, "sources": []}, "sequence_length": 512,
                "responses": {"from": "verifier", "max_tokens": 64}}  # fmt: skip
        found = count({"data": data}, files, {}, look_into)
        return round(found.rows, 3), found.complete

    folder: dict[str, Any] = {"file": "d", "files": {"d/a.jsonl": "1", "d/b.txt": "2"}}
    whole: dict[str, Any] = {"file": "c.jsonl", "sha256": "3"}
    outside: dict[str, Any] = {"dataset": "org/name", "files": {"x.parquet": "4"}}
    assert rows(folder) == (40, True)
    assert rows({**folder, "rows": 12}) == (12, True)
    assert rows(folder, whole) == (240, True)
    assert rows(folder, outside) == (40, False)
    assert rows(folder, {**outside, "rows": 7}) == (47, True)
    assert rows({"file": "e.jsonl.gz", "sha256": "5"}) == (0, False)
    assert rows({**folder, "weight": 1.0}, {**whole, "weight": 3.0}) == (160, True)  # the folder ends it
    assert rows({**folder, "weight": 1.0}, {**outside, "weight": 3.0}) == (0, False)
